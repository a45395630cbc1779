package mem

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Core is the page protocol of one part. It belongs to one goroutine.
type Core struct {
	cfg    Config
	canary canary
	shift  uint8 // log2 of a region's pages

	now     ident.Micros
	epoch   ident.Epoch
	members ident.PartSet
	shards  []ident.Part // the members in rising order: region r belongs to shards[r % len(shards)]

	// As a requester and as a holder.
	pages    regions[pageEntry]
	requests pageMap[request]
	pins     []pin
	deferred pageMap[wire.PageMsg]
	windows  windows
	passed   ident.Micros // the number, plus one, of the stint that this part passed on; 0 if none
	given    ident.Micros // and of the one that it was passed
	streams  streams
	company  company
	reqID    uint64
	held     [3]uint64 // pages by state; Invalid is not counted

	// As a directory.
	dir          regions[dirEntry]
	transactions pageMap[transaction]
	waiters      waiterPool
	past         past
	rebuild      *rebuild // nil while the shard serves
	homes        rehoming

	// wake is a time not after the first retry or deadline of a request, a transaction or a report. It may be too early, when what it
	// stood for is over; then a tick finds nothing and sets it right.
	wake ident.Micros

	loop     []wire.PageMsg // messages to self, not processed yet
	effects  []Effect
	traffic  []Traffic
	counters Counters
}

const never = ident.Micros(math.MaxInt64)

// New returns a core that waits for its first EventMembers. It panics if cfg makes no sense.
func New(cfg Config) *Core {
	if cfg.Retry == 0 {
		cfg.Retry = DefaultRetry
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = max(DefaultRetryMax, cfg.Retry)
	}
	if cfg.Deadline == 0 {
		cfg.Deadline = DefaultDeadline
	}
	switch {
	case cfg.Self >= ident.MaxParts, cfg.Pages == 0, cfg.Pages > uint64(wire.MaxPageNo)+1:
		panic(fmt.Sprintf("mem: part %d of a VM of %d pages", cfg.Self, cfg.Pages))
	case cfg.Window < 0, cfg.Stint < 0, cfg.Retry < 0, cfg.RetryMax < cfg.Retry, cfg.Deadline < 0, cfg.ReadAhead < 0, cfg.Company < 0:
		panic(fmt.Sprintf("mem: negative or crossing spans in %+v", cfg))
	}
	if cfg.RegionPages == 0 {
		cfg.RegionPages = RegionPages
	}
	if cfg.RegionPages > RegionPages || bits.OnesCount(cfg.RegionPages) != 1 {
		panic(fmt.Sprintf("mem: regions of %d pages", cfg.RegionPages))
	}
	shift := uint8(bits.TrailingZeros(cfg.RegionPages))
	return &Core{
		cfg:    cfg,
		canary: parseCanary(cfg.Canary),
		shift:  shift,
		pages:  newRegions[pageEntry](cfg.Pages, shift),
		dir:    newRegions[dirEntry](cfg.Pages, shift),
		past:   newPast(cfg.Pages, shift),
		wake:   never,
	}
}

// Step takes one event in at time now, which never goes back, and leaves its effects in Effects.
func (c *Core) Step(now ident.Micros, ev Event) {
	c.now = max(c.now, now)
	c.effects, c.traffic = c.effects[:0], c.traffic[:0]
	c.expireWindows()
	switch ev.Kind {
	case EventTick:
	case EventFault:
		c.fault(ev.Page, ev.Write, ev.By)
		if ev.Around > 1 && !ev.Write {
			c.around(ev.Page, ident.PageNo(ev.Around))
		}
	case EventPin:
		c.pin(ev.Page, ev.Write, ev.Token)
	case EventUnpin:
		c.unpin(ev.Page, ev.Token)
	case EventMessage:
		c.receive(&ev)
	case EventMembers:
		c.membersChanged(&ev)
	case EventYield:
		c.endStint()
	case EventPass:
		c.passTurn()
	case EventTurn:
		c.takeTurn()
	case EventRehome:
		c.rehome(ev.Page, ev.To)
	default:
		panic(fmt.Sprintf("mem: event kind %d", ev.Kind))
	}
	c.drainLoop()
	if c.now >= c.wake {
		c.fireTimers()
		c.drainLoop()
	}
	if c.homes.asked {
		c.giveAway()
	}
}

// Effects returns what the last Step asks for. It is valid until the next Step.
func (c *Core) Effects() []Effect { return c.effects }

// Traffic returns what pages came and went in the last Step, if Config.Observe is set. It is valid until the next one.
func (c *Core) Traffic() []Traffic { return c.traffic }

// drainLoop processes the messages to self, and those that they cause, until there are none.
func (c *Core) drainLoop() {
	for i := 0; i < len(c.loop); i++ {
		m := c.loop[i]
		c.dispatch(&m)
	}
	c.loop = c.loop[:0]
}

// send passes m to part to: over the network, or within this Step if that is this part itself.
func (c *Core) send(to ident.Part, m wire.PageMsg) {
	m.From, m.To, m.Epoch = c.cfg.Self, to, c.epoch
	if to == c.cfg.Self {
		c.loop = append(c.loop, m)
		return
	}
	c.effects = append(c.effects, Effect{Kind: EffectSend, To: to, Page: m.Page, Msg: m})
}

func (c *Core) effect(kind EffectKind, page ident.PageNo) {
	c.effects = append(c.effects, Effect{Kind: kind, Page: page})
}

// receive checks a message from the network: whoever sent it may be broken, of another epoch or hostile.
func (c *Core) receive(ev *Event) {
	m := &ev.Msg
	if m.Epoch != c.epoch && c.canary != canaryEpochIgnored || c.epoch == 0 {
		c.counters.RefusedEpoch++
		return
	}
	if m.To != c.cfg.Self || m.From == c.cfg.Self || !c.members.Has(m.From) || uint64(m.Page) >= c.cfg.Pages {
		c.counters.RefusedInvalid++
		return
	}
	switch m.Kind {
	case wire.KindReport:
		c.report(m, ev.Body)
	case wire.KindReportAck:
		c.reportAck(m)
	case wire.KindShardReady:
		c.shardReady(m.From)
	case wire.KindHome:
		c.home(m, ev.Body)
	case wire.KindHomeAck:
		c.homeAcked(m)
	case wire.KindHomed:
		c.homed(m)
	default:
		if !c.plausible(m) {
			c.counters.RefusedInvalid++
			return
		}
		c.dispatch(m)
	}
}

// plausible tells whether sender, receiver and requester of a page message are the parts that they must be.
func (c *Core) plausible(m *wire.PageMsg) bool {
	if c.canary == canaryEpochIgnored {
		return true
	}
	dir := c.Directory(m.Page)
	ofEpoch := epochOf(m.Serial) == c.epoch
	if c.cfg.Rehome {
		return c.plausibleAnywhere(m, ofEpoch)
	}
	switch m.Kind {
	case wire.KindGetShared, wire.KindGetModified:
		return dir == c.cfg.Self && m.Requester == m.From
	case wire.KindDone:
		return dir == c.cfg.Self && m.Requester == m.From && ofEpoch
	case wire.KindFwdShared, wire.KindFwdModified, wire.KindInval:
		return dir == m.From && m.Requester != c.cfg.Self && c.members.Has(m.Requester) && ofEpoch
	case wire.KindGrant:
		return dir == m.From && m.Requester == c.cfg.Self && ofEpoch
	case wire.KindLost, wire.KindNoPrefetch:
		return dir == m.From && m.Requester == c.cfg.Self
	case wire.KindData, wire.KindAck:
		return m.Requester == c.cfg.Self && ofEpoch
	}
	return false
}

// plausibleAnywhere is plausible where any member may be a region's directory, or pass on what is for it.
func (c *Core) plausibleAnywhere(m *wire.PageMsg, ofEpoch bool) bool {
	switch m.Kind {
	case wire.KindGetShared, wire.KindGetModified:
		return c.members.Has(m.Requester)
	case wire.KindDone:
		return c.members.Has(m.Requester) && ofEpoch
	case wire.KindFwdShared, wire.KindFwdModified, wire.KindInval:
		return m.Requester != c.cfg.Self && c.members.Has(m.Requester) && ofEpoch
	case wire.KindGrant, wire.KindData, wire.KindAck:
		return m.Requester == c.cfg.Self && ofEpoch
	case wire.KindLost, wire.KindNoPrefetch:
		return m.Requester == c.cfg.Self
	}
	return false
}

func (c *Core) dispatch(m *wire.PageMsg) {
	switch m.Kind {
	case wire.KindGetShared, wire.KindGetModified, wire.KindDone:
		switch {
		case c.cfg.Rehome && c.Directory(m.Page) != c.cfg.Self:
			c.pass(m)
		case m.Kind == wire.KindDone:
			c.done(m)
		default:
			c.get(m)
		}
	case wire.KindFwdShared, wire.KindFwdModified, wire.KindInval:
		c.forwarded(m)
	case wire.KindData, wire.KindGrant:
		c.granted(m)
	case wire.KindAck:
		c.acked(m)
	case wire.KindNoPrefetch:
		c.noPrefetch(m)
	case wire.KindLost:
		c.lost(m)
	}
}

// Directory returns the part that is the directory of page in the current epoch, as far as this part knows. Whoever is asked and has been it passes the
// question on.
func (c *Core) Directory(page ident.PageNo) ident.Part { return c.homeOf(c.regionOf(page)) }

func (c *Core) entry(page ident.PageNo) *pageEntry {
	chunk, fresh := c.pages.chunk(c.regionOf(page))
	if fresh && c.cfg.Image.Has(c.cfg.Self) {
		for i := range chunk {
			chunk[i] = pageEntry{serial: imageSerial, grantee: c.cfg.Self} // contents received, not installed
		}
	}
	return &chunk[page&(1<<c.shift-1)]
}

// imageSerial stands for the transaction that brought a page of an image: before any of an epoch.
const imageSerial = 1

func (c *Core) setState(e *pageEntry, s State) {
	c.held[e.state]--
	c.held[s]++
	e.state = s
}

// Page returns the state of a page at this part: Invalid, Shared or Modified.
func (c *Core) Page(page ident.PageNo) State {
	if e := c.pages.look(page); e != nil {
		return e.state
	}
	return Invalid
}

// Holder returns what this part, being the page's directory, knows of it; false if it is not or the shard is being rebuilt.
func (c *Core) Holder(page ident.PageNo) (HolderInfo, bool) {
	if c.epoch == 0 || c.rebuild != nil || uint64(page) >= c.cfg.Pages || c.Directory(page) != c.cfg.Self {
		return HolderInfo{}, false
	}
	e := c.dir.look(page)
	if e == nil {
		blank := c.blank(c.regionOf(page))
		e = &blank
	}
	return HolderInfo{State: e.state, Holders: e.holders, Serial: e.serial, Busy: e.busy}, true
}

// Held counts the pages that this part holds, by state.
func (c *Core) Held() (shared, modified uint64) { return c.held[Shared], c.held[Modified] }

// Holdings counts the pages from from up to to that this part holds, by state. Those of an image that nobody has asked for count as Modified if
// present says that they have contents.
func (c *Core) Holdings(from, to ident.PageNo, present func(ident.PageNo) bool) (shared, modified int) {
	for page := from; page < to && uint64(page) < c.cfg.Pages; page++ {
		switch state := c.Page(page); {
		case state == Shared:
			shared++
		case state == Modified, c.Image(page) && present(page):
			modified++
		}
	}
	return shared, modified
}

// Outstanding counts the pages that this part has asked for, or is being given, and does not have yet.
func (c *Core) Outstanding() int { return c.requests.n }

// Counters returns the counters.
func (c *Core) Counters() Counters { return c.counters }

// Transactions counts the pages whose transaction this directory shard has not seen done.
func (c *Core) Transactions() int { return c.transactions.n }

// Giving counts the regions whose directory is on its way from this part to another one.
func (c *Core) Giving() int { return len(c.homes.giving) }

// RegionPages is the number of pages in a region.
func (c *Core) RegionPages() uint64 { return 1 << c.shift }

// Epoch is the current epoch, 0 before the first EventMembers.
func (c *Core) Epoch() ident.Epoch { return c.epoch }

// Wanted calls f for every page that a request of this part is open for, until f returns false. f must not step the core.
func (c *Core) Wanted(f func(ident.PageNo) bool) {
	c.requests.each(func(page ident.PageNo, _ *request) bool { return f(page) })
}

// Image tells whether the latest contents of page are this part's copy from the image that it started from, which nobody has asked for.
func (c *Core) Image(page ident.PageNo) bool {
	if !c.cfg.Image.Has(c.cfg.Self) {
		return false
	}
	e := c.pages.look(page)
	return e == nil || e.state == Invalid && e.serial == imageSerial
}
