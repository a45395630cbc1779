// Package explore visits every state that a small world of the page protocol can reach: the production cores, every order in which
// messages can arrive, every moment for a vCPU to run, a part to die, a message to be repeated or lost. What package pages samples, this
// proves for its bounds.
//
// A state is the cores' states, the fake memfds and guest mappings, what the vCPUs have still to do, and the messages on their way, in no
// order. Time does not pass: timers fire, all at once, only in states where no message is on its way, since before that they would do
// what a repeated message does. States are told apart by a 128-bit hash of their encoding.
package explore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/wire"
)

// Bounds limit a world.
type Bounds struct {
	Parts, Pages   int
	Reads, Writes  int // of each part, to any pages in any order
	OpsTotal       int // of all parts together; 0 is no limit
	Crashes        int
	Repeats, Loses int // messages
	Late           int // writes that do not follow at once when their page was mapped: without a bound two writers could starve for ever
	Rehomes        int // directories of regions that are to go to another part
	Canary         string

	Progress func(r Result, frontier int) // unless nil, called after each depth
}

// access is what a guest mapping allows.
type access uint8

const (
	none access = iota
	readOnly
	readWrite
)

// message is on its way.
type message struct {
	msg      wire.PageMsg
	contents uint8
	body     []byte
	enc      []byte // encoding, by which messages are sorted
}

// part is one part of a state. Parts are never changed once they belong to a state; states share them.
type part struct {
	core          *mem.Core // nil: dead
	enc           []byte    // of the core
	memfd         []uint8
	guest         []access
	reads, writes int  // still to do
	waits         bool // for page, faulted
	ready         bool // to write page, which was mapped since it faulted
	page          ident.PageNo
	write         bool
	epoch         ident.Epoch // of the last Members it got
}

// state is one state of the world.
type state struct {
	parts   []*part
	flight  []message
	latest  []uint8
	values  uint8
	ops     int
	crashes int
	repeats int
	loses   int
	late    int
	rehomes int
	epochs  []ident.PartSet // members by epoch, from 1
	trace   *trace
}

// trace leads back to the initial state.
type trace struct {
	before *trace
	action string
}

func (t *trace) String() string {
	var lines []string
	for ; t != nil; t = t.before {
		lines = append(lines, t.action)
	}
	slices.Reverse(lines)
	return fmt.Sprint(len(lines), " steps:\n  ", string(bytes.Join(bytesOf(lines), []byte("\n  "))))
}

func bytesOf(lines []string) [][]byte {
	var out [][]byte
	for _, l := range lines {
		out = append(out, []byte(l))
	}
	return out
}

// initial is the state in which every part knows the first epoch.
func initial(b Bounds) (*state, error) {
	s := &state{latest: make([]uint8, b.Pages), ops: b.OpsTotal, crashes: b.Crashes, repeats: b.Repeats, loses: b.Loses, late: b.Late, rehomes: b.Rehomes}
	if s.ops == 0 {
		s.ops = b.Parts * (b.Reads + b.Writes)
	}
	var members ident.PartSet
	for i := range b.Parts {
		members = members.Set(ident.Part(i))
	}
	s.epochs = []ident.PartSet{members}
	for i := range b.Parts {
		core := mem.New(mem.Config{Self: ident.Part(i), Pages: uint64(b.Pages), RegionPages: 1, Rehome: b.Rehomes > 0, Canary: b.Canary})
		s.parts = append(s.parts, &part{core: core, memfd: make([]uint8, b.Pages), guest: make([]access, b.Pages), reads: b.Reads, writes: b.Writes, epoch: 1})
	}
	for i := range s.parts {
		if err := s.step(ident.Part(i), mem.Event{Kind: mem.EventMembers, Epoch: 1, Members: members, Fresh: true}, nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// fork copies s for a successor; parts are shared until touched.
func (s *state) fork() *state {
	n := *s
	n.parts = slices.Clone(s.parts)
	n.flight = slices.Clone(s.flight)
	n.latest = slices.Clone(s.latest)
	return &n
}

// own gives s a part of its own to change.
func (s *state) own(i ident.Part) *part {
	p := *s.parts[i]
	p.memfd, p.guest = slices.Clone(p.memfd), slices.Clone(p.guest)
	s.parts[i] = &p
	return &p
}

// timersDue is longer than any timer of a core.
const timersDue = 100 * ident.Second

// step steps a part's core and executes the effects.
func (s *state) step(i ident.Part, ev mem.Event, m *message) error {
	p := s.own(i)
	p.core = p.core.Clone()
	now := ident.Micros(0)
	if ev.Kind == mem.EventTick {
		if at, ok := p.core.NextDeadline(); ok {
			now = at + timersDue
		}
	}
	p.core.Step(now, ev)
	effects := p.core.Effects()
	for j := range effects {
		if err := s.execute(i, p, &effects[j], m); err != nil {
			return err
		}
	}
	p.enc = p.core.AppendState(p.enc[:0:0])
	return p.core.Check()
}

func (s *state) execute(i ident.Part, p *part, e *mem.Effect, m *message) error {
	switch e.Kind {
	case mem.EffectSend:
		out := message{msg: e.Msg, body: bytes.Clone(e.Body)}
		if e.Msg.Flags&wire.FlagContents != 0 {
			out.contents = p.memfd[e.Page]
		}
		s.enqueue(out)
	case mem.EffectStore, mem.EffectZero:
		if p.guest[e.Page] != none {
			return fmt.Errorf("%v: contents of page %d replaced while mapped", i, e.Page)
		}
		p.memfd[e.Page] = 0
		if e.Kind == mem.EffectStore {
			p.memfd[e.Page] = m.contents
		}
	case mem.EffectMap:
		p.guest[e.Page] = readOnly
		if e.Writable {
			p.guest[e.Page] = readWrite
		}
		s.wake(p, e.Page)
	case mem.EffectProtect:
		p.guest[e.Page] = min(p.guest[e.Page], readOnly)
	case mem.EffectRevoke:
		p.guest[e.Page] = none
	case mem.EffectLostPage:
		return s.lost(p, e.Page)
	}
	return nil
}

// wake lets the vCPU that waits for page go on: it writes at once, or, while the bounds allow that, at any later moment, when the page may
// be gone again. A read is over with that: what it finds is checked in every state.
func (s *state) wake(p *part, page ident.PageNo) {
	if !p.waits || p.page != page || p.write && p.guest[page] != readWrite {
		return
	}
	p.waits = false
	switch {
	case !p.write:
	case s.late > 0:
		s.late--
		p.ready = true
	default:
		s.perform(p)
	}
}

// lost ends the operation that waits for a lost page, and checks that nobody holds it.
func (s *state) lost(p *part, page ident.PageNo) error {
	if p.waits && p.page == page {
		p.waits, p.ready = false, false
	}
	if len(s.epochs) == 1 {
		return fmt.Errorf("page %d is lost though nobody died", page)
	}
	for i, q := range s.parts {
		if q.core != nil && q.core.Page(page) != mem.Invalid {
			return fmt.Errorf("page %d is lost though p%d holds it", page, i)
		}
	}
	return nil
}

func (s *state) enqueue(m message) {
	m.enc = mem.AppendMsg(nil, &m.msg)
	m.enc = append(m.enc, m.contents)
	m.enc = append(m.enc, m.body...)
	at, _ := slices.BinarySearchFunc(s.flight, m, func(a, b message) int { return bytes.Compare(a.enc, b.enc) })
	s.flight = slices.Insert(s.flight, at, m)
}

// prune drops messages that nobody will ever take in: their receiver is dead, or in a later epoch and so refuses them.
func (s *state) prune(canary string) {
	s.flight = slices.DeleteFunc(s.flight, func(m message) bool {
		p := s.parts[m.msg.To]
		return p.core == nil || m.msg.Epoch < p.core.Epoch() && canary == ""
	})
}

// check checks what must hold in every state.
func (s *state) check() error {
	for page := range s.latest {
		readers, writers := 0, 0
		for _, p := range s.parts {
			if p.core == nil {
				continue
			}
			switch p.guest[page] {
			case readOnly:
				readers++
			case readWrite:
				writers++
			}
			if p.guest[page] != none && p.memfd[page] != s.latest[page] {
				return fmt.Errorf("page %d can be read as %d, the latest write is %d", page, p.memfd[page], s.latest[page])
			}
		}
		if writers > 1 || writers == 1 && readers > 0 {
			return fmt.Errorf("page %d is mapped by %d writers and %d readers", page, writers, readers)
		}
	}
	return nil
}

// checkEnd checks what must hold in a state from which nothing leads on.
func (s *state) checkEnd() error {
	for i, p := range s.parts {
		switch {
		case p.core == nil:
		case p.waits || p.ready:
			return fmt.Errorf("p%d waits for page %d for ever", i, p.page)
		case p.core.Outstanding() != 0 || p.core.Transactions() != 0 || p.core.Giving() != 0 || p.core.Rebuilding():
			return fmt.Errorf("p%d never settles: %d outstanding, %d transactions, rebuilding %t", i, p.core.Outstanding(),
				p.core.Transactions(), p.core.Rebuilding())
		}
	}
	return nil
}

// encode appends what tells the state from others.
func (s *state) encode(b []byte) []byte {
	for _, p := range s.parts {
		if p.core == nil {
			b = append(b, 0xfe)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(p.enc)))
		b = append(b, p.enc...)
		b = append(b, p.memfd...)
		for _, a := range p.guest {
			b = append(b, byte(a))
		}
		b = append(b, byte(p.reads), byte(p.writes), byte(p.epoch), byte(p.page))
		b = append(b, flagBit(p.waits)|flagBit(p.ready)<<1|flagBit(p.write)<<2)
	}
	for i := range s.flight {
		b = binary.AppendUvarint(b, uint64(len(s.flight[i].enc)))
		b = append(b, s.flight[i].enc...)
	}
	b = append(b, s.latest...)
	b = append(b, s.values, byte(s.ops), byte(s.crashes), byte(s.repeats), byte(s.loses), byte(s.late), byte(s.rehomes))
	for _, m := range s.epochs {
		b = binary.AppendUvarint(b, uint64(m))
	}
	return b
}

func flagBit(v bool) byte {
	if v {
		return 1
	}
	return 0
}
