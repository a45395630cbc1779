// Package lending simulates servers that lend each other memory: VMs whose needs change, messages that are late, lost and out of order, servers that
// die and come back. The rules are those of mem/lending, which servers follow.
//
// It holds, at any time,
//   - what a server's own parts and others hold in its memory is no more than it has;
//   - a VM that fits the cells that it depends on holds nothing elsewhere, but for the moments after it began to fit;
//   - a server whose parts are short of memory gets back what it lent within a bounded time, whether borrowers answer or not.
package lending

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/lending"
	"github.com/cellvisor/cellvisor/sim"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

func init() {
	sim.Register(sim.Scenario{
		Name:     "lending",
		Doc:      "servers borrow memory and get it back: none has more than it has, no VM that fits its cells leaves them",
		Run:      Run,
		Canaries: lending.Canaries,
	})
}

// Spans of a run.
const (
	runTime  = 120 * ident.Second
	patience = 25 * ident.Second // two rounds of ReturnIn, and questions that were lost
)

type world struct {
	*kernel.World
	canary  string
	servers []*server
}

// server is one with the parts on it.
type server struct {
	w      *world
	id     ident.ServerID
	node   kernel.NodeID
	cell   ident.CellName
	memory ident.Bytes
	ledger *lending.Ledger
	parts  []*part
	dead   bool
	frozen ident.Micros // its parts do not answer until then

	changed ident.Micros // when a need changed last
	short   ident.Micros // since when parts are short; 0: they are not
	inDisk  map[lending.Key]bool
}

// part is a VM's only part.
type part struct {
	key    lending.Key
	on     *server
	memory ident.Bytes // of the VM
	need   ident.Bytes // that it uses now
	here   ident.Bytes // in its server's memory
	loans  []*loan
	fitsAt ident.Micros // since when it fits; -1: it does not
}

// loan is what a part has at a lender.
type loan struct {
	lending.Lender
	from *server
	asks uint64 // number of the last question
	last lending.Ask
}

type question struct {
	key             lending.Key
	number          uint64
	has, held, want ident.Bytes
	from            *server
}

type answer struct {
	key    lending.Key
	number uint64
	limit  ident.Bytes
	from   ident.ServerID
}

// Run runs the world of a seed. If it fails, it runs it again to tell the end of its story.
func Run(seed uint64, canary string) error {
	if err := run(seed, canary, false); err == nil {
		return nil
	}
	return run(seed, canary, true)
}

func run(seed uint64, canary string, tracing bool) error {
	k := kernel.New(seed, kernel.Network{DelayMin: 100, DelayMax: 5000, TailShare: 20, TailMax: 3 * ident.Second, LossShare: 10, RepeatShare: 10})
	k.Tracing = tracing
	w := build(k, canary)
	err := w.RunUntil(runTime, func() bool { return false })
	if err != nil && tracing {
		err = fmt.Errorf("%w\n%s", err, k.Trace())
	}
	return err
}

func build(k *kernel.World, canary string) *world {
	w := &world{World: k, canary: canary}
	rng := k.Rand()
	cells := 1 + rng.IntN(3)
	vm := ident.VMID(0)
	for c := range cells {
		for range 1 + rng.IntN(3) {
			s := &server{w: w, id: ident.ServerID(len(w.servers) + 1), cell: ident.CellName(rune('a' + c)), inDisk: map[lending.Key]bool{}}
			s.memory = ident.Bytes(64<<rng.IntN(4)) * ident.MiB
			s.ledger = lending.NewLedger(s.memory, canary)
			s.node = w.Add(s)
			w.servers = append(w.servers, s)
			w.WakeAt(s.node, w.Between(0, lending.RenewEvery))
		}
	}
	for _, s := range w.servers {
		for range rng.IntN(4) {
			vm++
			s.parts = append(s.parts, &part{key: lending.Key{VM: vm}, on: s, memory: ident.Bytes(1+rng.IntN(int(3*s.memory/ident.MiB))) * ident.MiB, fitsAt: -1})
		}
	}
	return w
}

// cellsMemory is how much the live servers of a cell have.
func (w *world) cellsMemory(c ident.CellName) (sum ident.Bytes) {
	for _, s := range w.servers {
		if s.cell == c && !s.dead {
			sum += s.memory
		}
	}
	return sum
}

// Receive implements kernel.Node.
func (s *server) Receive(_ ident.Micros, _ kernel.NodeID, msg any) {
	switch m := msg.(type) {
	case question:
		if m.from.dead || !slices.ContainsFunc(m.from.parts, func(p *part) bool { return p.key == m.key }) {
			return // of a server, or an incarnation of one, that is not in the view
		}
		if limit, ok := s.ledger.Renew(s.w.Now(), m.key, m.number, m.has, m.held, m.want); ok {
			s.w.Send(s.node, m.from.node, answer{m.key, m.number, limit, s.id})
		}
	case answer:
		s.answered(m)
	}
	s.check()
}

func (s *server) answered(m answer) {
	for _, p := range s.parts {
		for _, l := range p.loans {
			if p.key == m.key && l.Server == m.from && l.asks == m.number {
				p.moveAway(l, l.Answered(l.last, m.limit))
			}
		}
	}
}

// moveAway takes n bytes from a lender: they are in a file then. A part that is frozen does so later.
func (p *part) moveAway(l *loan, n ident.Bytes) {
	if p.on.frozen > p.on.w.Now() {
		return
	}
	l.Held -= n
}

// Wake implements kernel.Node: the turn of a server, about once a second.
func (s *server) Wake(ident.Micros) {
	w := s.w
	w.WakeAt(s.node, w.Now()+w.Between(lending.RenewEvery*9/10, lending.RenewEvery*11/10))
	s.change()
	s.fill()
	s.ledger.Own(w.Now(), s.used(), s.missing())
	for _, k := range s.ledger.Overdue(w.Now()) {
		s.inDisk[k] = true
	}
	for _, l := range s.ledger.Loans() {
		if !l.Paged {
			delete(s.inDisk, l.Key)
		}
	}
	s.fill()
	for _, p := range s.parts {
		p.borrow()
	}
	s.faults()
	s.check()
}

// change lets needs change now and then.
func (s *server) change() {
	rng := s.w.Rand()
	for _, p := range s.parts {
		if rng.IntN(25) == 0 && s.w.Now() < runTime-30*ident.Second {
			p.need = ident.Bytes(rng.IntN(int(p.memory/ident.PageSize))) * ident.PageSize
			s.changed = s.w.Now()
		}
	}
}

func (s *server) used() (sum ident.Bytes) {
	for _, p := range s.parts {
		sum += p.here
	}
	return sum
}

func (s *server) missing() (sum ident.Bytes) {
	for _, p := range s.parts {
		sum += p.need - p.here
	}
	return sum
}

// fill lets parts hold what they need as far as there is memory, and what others may not hold elsewhere.
func (s *server) fill() {
	for _, p := range s.parts {
		p.here = min(p.here, p.need)
	}
	room := s.memory - min(s.memory, s.ledger.Lent()+s.used())
	for _, p := range s.parts {
		more := min(p.need-p.here, room)
		p.here += more
		room -= more
	}
	if s.missing() == 0 {
		s.short = 0
	} else if s.short == 0 {
		s.short = s.w.Now()
	}
}

// borrow asks lenders, and puts there what they allow.
func (p *part) borrow() {
	s, w := p.on, p.on.w
	var lenders []lending.Lender
	for _, o := range w.servers {
		if o == s || o.dead {
			continue
		}
		if !slices.ContainsFunc(p.loans, func(l *loan) bool { return l.from == o }) {
			p.loans = append(p.loans, &loan{Lender: lending.Lender{Server: o.id, Cell: o.cell, Memory: o.memory}, from: o})
		}
	}
	out := p.need - p.here
	var held ident.Bytes
	for _, l := range p.loans {
		if l.Held > l.Limit {
			p.moveAway(l, l.Held-l.Limit)
		}
		held += l.Held
	}
	for _, l := range p.loans { // most of what is out and in no memory goes where there is room
		if held > out {
			less := min(held-out, l.Held)
			l.Held -= less
			held -= less
		}
		if more := min(out-min(out, held), l.Limit-min(l.Limit, l.Held)); more > 0 && s.frozen <= w.Now() {
			l.Held += more
			held += more
		}
		lenders = append(lenders, l.Lender)
	}
	b := lending.Borrower{Key: p.key, Short: out > 0, Out: out - min(out, held), Cells: []ident.CellName{s.cell}, Canary: w.canary,
		Fits: lending.Fits(p.memory, w.cellsMemory(s.cell))}
	for _, a := range lending.Plan(w.Now(), b, lenders) {
		for _, l := range p.loans {
			if l.Server == a.Server {
				l.asks++
				l.Asked, l.last, l.Owes = w.Now(), a, true
				w.Send(s.node, l.from.node, question{p.key, l.asks, a.Has, a.Held, a.Want, s})
			}
		}
	}
}

// faults kills servers, brings them back, and lets parts stand still.
func (s *server) faults() {
	w, rng := s.w, s.w.Rand()
	if w.Now() > runTime-40*ident.Second {
		return
	}
	switch rng.IntN(300) {
	case 0:
		w.die(s)
		w.At(w.Now()+w.Between(ident.Second, 20*ident.Second), func() { w.revive(s) })
	case 1, 2:
		s.frozen = w.Now() + w.Between(ident.Second, 20*ident.Second)
	}
}

// die takes a server with its parts, its memory, and what others held there: those VMs are lost, and start anew.
func (w *world) die(s *server) {
	s.dead = true
	w.Crash(s.node)
	for _, o := range w.servers {
		for _, p := range o.parts {
			i := slices.IndexFunc(p.loans, func(l *loan) bool { return l.from == s })
			if i < 0 {
				continue
			}
			if p.loans[i].Held > 0 {
				p.need, p.here = 0, 0
				for _, l := range p.loans {
					l.Held = 0
				}
			}
			p.loans = slices.Delete(p.loans, i, i+1)
		}
		if o != s {
			for _, p := range s.parts {
				o.ledger.End(p.key)
				delete(o.inDisk, p.key)
			}
		}
	}
}

func (w *world) revive(s *server) {
	s.dead = false
	s.ledger, s.inDisk, s.short = lending.NewLedger(s.memory, w.canary), map[lending.Key]bool{}, 0
	for i, p := range s.parts {
		s.parts[i] = &part{key: lending.Key{VM: p.key.VM + 1000}, on: s, memory: p.memory, fitsAt: -1}
	}
	w.Restart(s.node, s)
	w.WakeAt(s.node, w.Now()+lending.RenewEvery)
}

// check fails the run if the world is not as it must be.
func (s *server) check() {
	for _, o := range s.w.servers {
		if err := o.wrong(); err != nil {
			s.w.Fail(err)
		}
	}
}

func (s *server) wrong() error {
	if s.dead {
		return nil
	}
	w, now := s.w, s.w.Now()
	lent := ident.Bytes(0)
	for _, o := range w.servers {
		for _, p := range o.parts {
			for _, l := range p.loans {
				if l.from == s && !o.dead && !s.inDisk[p.key] {
					lent += l.Held
				}
			}
		}
	}
	if s.used()+lent > s.memory {
		return fmt.Errorf("server %d has %v; its own parts hold %v, others %v", s.id, s.memory, s.used(), lent)
	}
	if s.short != 0 && now-max(s.short, s.changed) > patience && lent > 0 {
		return fmt.Errorf("server %d is short of %v for %d s, and others still hold %v there", s.id, s.missing(), (now-s.short)/ident.Second, lent)
	}
	for _, p := range s.parts {
		switch fits := p.memory <= w.cellsMemory(s.cell); {
		case !fits:
			p.fitsAt = -1
		case p.fitsAt < 0:
			p.fitsAt = now
		}
		for _, l := range p.loans {
			if l.Held > 0 && l.Cell != s.cell && p.fitsAt >= 0 && now-p.fitsAt > patience && s.frozen < now-patience {
				return fmt.Errorf("vm %d of %v fits cell %s, which has %v, and holds %v in cell %s", p.key.VM, p.memory, s.cell, w.cellsMemory(s.cell), l.Held, l.Cell)
			}
		}
	}
	return nil
}
