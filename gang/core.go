package gang

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Bounds of a schedule.
const (
	MinSlice   = 2 * ident.Millisecond
	MaxSlice   = 20 * ident.Millisecond
	Rotation   = 200 * ident.Millisecond // in which every gang should run once, as long as MinSlice allows
	MinCharge  = 500 * ident.Micros(1)   // of one start
	SliceLease = ident.Second            // a conductor that is silent for so long conducts no more
	OrderLease = 5 * ident.Second        // a worker that hears nothing for so long is free
	IdleLease  = 30 * ident.Second       // and one without work, of which there are many

	DefaultWeight = 100
	MaxWeight     = 10_000
)

const (
	minLead    = 2 * ident.Millisecond // between a plan and its begin on several servers: at least, and at most
	maxLead    = 8 * ident.Millisecond
	planLead   = 6 * ident.Millisecond   // the same for slices that nobody waits for
	ownLead    = 500 * ident.Micros(1)   // at least, if all is on one server
	keepAlive  = 100 * ident.Millisecond // between slices that change nothing
	orderRenew = 2 * ident.Second        // an order is repeated after so long
	idleRenew  = 12 * ident.Second       // one to a part without work
	orderRetry = 20 * ident.Millisecond  // and one that did not reach its worker
	reportGap  = ident.Millisecond       // between reports of a server
	echoGap    = 20 * ident.Millisecond  // between reports that only serve to compare clocks
)

// Config says who a core is.
type Config struct {
	Self   ident.ServerID
	Start  ident.Micros // any time that is later with each start of this server: slices are numbered from it
	Host   bool         // leave everything to the host's scheduler
	Canary string       // a planted bug, for the simulator

	// Distance is how far slots of this server are from each other: the nearer the smaller. nil: all alike.
	Distance [][]uint8
}

// Server is a live server of the view.
type Server struct {
	ID    ident.ServerID
	Slots int
}

// Part is the share of a VM on one server.
type Part struct {
	Server ident.ServerID
	VCPUs  int
}

// VM is a running VM. Weight 0 means DefaultWeight. No two parts are on one server.
type VM struct {
	ID     ident.VMID
	Weight int
	Parts  []Part
}

// Event is what a Core is told: View, Note, Slice, Report, Undelivered or Tick.
type Event interface{ event() }

// View is the replicated state as far as it matters here.
type View struct {
	Epoch   ident.Epoch
	Servers []Server // by rising ID
	VMs     []VM     // by rising ID

	Host []ident.ServerID // of the servers, those that leave everything to their host's scheduler
}

// Note comes from a worker of this server.
type Note struct{ wire.SliceNote }

// Slice comes from another server.
type Slice struct {
	From  ident.ServerID
	Epoch ident.Epoch
	wire.GangSlice
}

// Report comes from another server.
type Report struct {
	From  ident.ServerID
	Epoch ident.Epoch
	wire.GangReport
}

// Undelivered says that an order did not reach the worker of a VM here.
type Undelivered struct{ VM ident.VMID }

// Tick says that the time of NextDeadline has come.
type Tick struct{}

func (View) event()   {}
func (Note) event()   {}
func (Slice) event()  {}
func (Report) event() {}
func (Tick) event()   {}

func (Undelivered) event() {}

// Message is to be sent to another server. One of Slice and Report is set.
type Message struct {
	To     ident.ServerID
	Slice  *wire.GangSlice
	Report *wire.GangReport
}

// Order is to be given to the worker of a VM here. CPUs holds slot numbers.
type Order struct {
	VM ident.VMID
	wire.SliceOrder
}

// Counters count since the start.
type Counters struct {
	Slices   uint64 // planned here as conductor
	Fills    uint64 // slices that gained a gang before their end
	Cuts     uint64 // slices that a waking gang cut short
	Orders   uint64 // to workers here
	Reports  uint64 // sent to another server
	Lapses   uint64 // times that no slice came and the workers here were freed
	Refused  uint64 // messages from a wrong server or epoch, or out of order
	Gangs    uint64 // in the domain of this server now
	Conducts uint64 // 1 while this server conducts slices

	StartSkew Histogram // between the first and the last vCPU of a gang on several servers, as conductor
}

// Core is the scheduler of one server. It is not safe for concurrent use.
type Core struct {
	cfg    Config
	view   View
	domain domain
	member member
	lead   conductor
	count  Counters

	messages []Message
	orders   []Order

	order []waiter // byWait's
	spare []int    // slots'
}

// New returns a core that knows no view yet.
func New(cfg Config) *Core {
	c := &Core{cfg: cfg}
	c.lead.number = uint64(max(0, cfg.Start))
	return c
}

// Step takes in an event.
func (c *Core) Step(now ident.Micros, ev Event) {
	c.commit(now)
	switch ev := ev.(type) {
	case View:
		c.takeView(now, ev)
	case Note:
		c.takeNote(now, ev.SliceNote)
	case Slice:
		if ev.Epoch != c.view.Epoch || ev.From != c.domain.conductor || !c.follows() {
			c.count.Refused++
			break
		}
		c.takeSlice(now, &ev.GangSlice)
	case Report:
		if ev.Epoch != c.view.Epoch || !c.lead.active {
			c.count.Refused++
			break
		}
		c.takeReport(now, ev.From, &ev.GangReport)
	case Undelivered:
		if p := c.member.find(ev.VM); p != nil {
			p.told, c.member.retry = nil, now+orderRetry
		}
		return
	case Tick:
	default:
		panic(fmt.Sprintf("gang: unknown event %T", ev))
	}
	c.tick(now)
}

// tick does what is due.
func (c *Core) tick(now ident.Micros) {
	if c.lead.active && now >= c.lead.due() {
		c.conduct(now)
	}
	c.memberTick(now)
}

// NextDeadline is when to step a Tick at the latest.
func (c *Core) NextDeadline() (ident.Micros, bool) {
	at, ok := c.memberDeadline()
	if c.lead.active && (!ok || c.lead.due() < at) {
		return c.lead.due(), true
	}
	return at, ok
}

// Messages drains the messages to send.
func (c *Core) Messages() []Message {
	out := c.messages
	c.messages = nil
	return out
}

// Orders drains the orders to workers here.
func (c *Core) Orders() []Order {
	out := c.orders
	c.orders = nil
	return out
}

// Counters returns a snapshot.
func (c *Core) Counters() Counters {
	n := c.count
	n.Gangs = uint64(len(c.domain.vms))
	if c.lead.active {
		n.Conducts = 1
	}
	return n
}

// follows tells whether this server obeys slices.
func (c *Core) follows() bool { return c.domain.sliced && !c.cfg.Host }

func (c *Core) takeView(now ident.Micros, v View) {
	before, epoch := c.domain.conductor, c.view.Epoch
	c.view = v
	c.domain = domainOf(&v, c.cfg.Self)
	if before != c.domain.conductor || epoch != v.Epoch {
		c.member.number = 0
	}
	c.rebuildParts(now)
	c.rebuildConductor(now)
}

// domain is the set of servers whose schedules depend on each other, the given one among them.
type domain struct {
	servers   []Server // by rising ID
	vms       []VM     // with a part on one of them, by rising ID
	conductor ident.ServerID
	sliced    bool // some server has more vCPUs than slots
}

// domainOf grows the domain of a server until no VM leads out of it.
func domainOf(v *View, self ident.ServerID) domain {
	in := []ident.ServerID{self}
	taken := make([]bool, len(v.VMs))
	for grown := true; grown; {
		grown = false
		for i := range v.VMs {
			if taken[i] || !slices.ContainsFunc(v.VMs[i].Parts, func(p Part) bool { return slices.Contains(in, p.Server) }) {
				continue
			}
			taken[i], grown = true, true
			for _, p := range v.VMs[i].Parts {
				if !slices.Contains(in, p.Server) {
					in = append(in, p.Server)
				}
			}
		}
	}
	d := domain{}
	for _, s := range v.Servers {
		if slices.Contains(in, s.ID) {
			d.servers = append(d.servers, s)
		}
	}
	if len(d.servers) > 0 {
		d.conductor = d.servers[0].ID
	}
	load := make([]int, len(d.servers))
	for i := range v.VMs {
		if !taken[i] {
			continue
		}
		vm := v.VMs[i]
		vm.Parts = slices.DeleteFunc(slices.Clone(vm.Parts), func(p Part) bool { return d.index(p.Server) < 0 || p.VCPUs < 1 })
		for _, p := range vm.Parts {
			load[d.index(p.Server)] += p.VCPUs
		}
		if len(vm.Parts) > 0 {
			d.vms = append(d.vms, vm)
		}
	}
	for i, s := range d.servers {
		d.sliced = d.sliced || load[i] > s.Slots
	}
	if slices.ContainsFunc(d.servers, func(s Server) bool { return slices.Contains(v.Host, s.ID) }) {
		d.sliced = false // half a gang would be held while the other runs: better all of them are free
	}
	return d
}

// index finds a server of the domain, or returns -1.
func (d *domain) index(id ident.ServerID) int {
	return slices.IndexFunc(d.servers, func(s Server) bool { return s.ID == id })
}
