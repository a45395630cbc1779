package mem

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// script is a VM that a file in testdata drives by verbs. Messages wait in a queue until "deliver" or "drop"; run the test with -rewrite
// to write the outputs anew.
//
//	new parts=N pages=N [window=MICROS] [stint=MICROS] [readahead=N] [company=N]   a VM in epoch 1
//	fault part=P page=N [write]
//	pin, unpin part=P page=N token=N [write]
//	yield, pass, turn part=P
//	deliver [n=N] [to=P] [again]    the first N messages (all, also those that follow), or only those to P; again: twice
//	drop [to=P]                     all that wait
//	hold [to=P]                     put them aside; release puts them back
//	release
//	advance micros=N                time passes, everybody ticks
//	die part=P                      P says and hears no more
//	members epoch=N parts=(P,P,...) [at=P]
//	pages page=N                    what all parts and the directory know of it
type script struct {
	t     *testing.T
	cores []*Core
	dead  ident.PartSet
	queue []Event
	held  []Event
	now   ident.Micros
	out   strings.Builder
}

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.out.Reset()
			s.run(d)
			for i, c := range s.cores {
				if err := c.Check(); err != nil && !s.dead.Has(ident.Part(i)) {
					fmt.Fprintf(&s.out, "CHECK: %v\n", err)
				}
			}
			if s.out.Len() == 0 {
				return "ok\n"
			}
			return s.out.String()
		})
	})
}

func (s *script) run(d *datadriven.TestData) {
	arg := func(name string) int {
		v := -1
		d.MaybeScanArgs(s.t, name, &v)
		return v
	}
	ev := Event{Page: ident.PageNo(max(0, arg("page"))), Token: uint64(max(0, arg("token"))), Write: d.HasArg("write")}
	part := arg("part")
	switch d.Cmd {
	case "new":
		s.create(arg("parts"), Config{Pages: uint64(arg("pages")), Window: ident.Micros(max(0, arg("window"))), Stint: ident.Micros(max(0, arg("stint"))), ReadAhead: max(0, arg("readahead")), Company: max(0, arg("company"))})
	case "fault":
		ev.Kind = EventFault
		s.step(part, ev)
	case "yield", "pass", "turn":
		ev.Kind = map[string]EventKind{"yield": EventYield, "pass": EventPass, "turn": EventTurn}[d.Cmd]
		s.step(part, ev)
	case "pin":
		ev.Kind = EventPin
		s.step(part, ev)
	case "unpin":
		ev.Kind = EventUnpin
		s.step(part, ev)
	case "deliver":
		s.deliver(arg("n"), arg("to"), d.HasArg("again"))
	case "drop":
		s.take(arg("to"))
	case "hold":
		s.held = append(s.held, s.take(arg("to"))...)
	case "release":
		s.queue, s.held = append(s.queue, s.held...), nil
	case "advance":
		s.now += ident.Micros(arg("micros"))
		for i := range s.cores {
			s.step(i, Event{Kind: EventTick})
		}
	case "die":
		s.dead = s.dead.Set(ident.Part(part))
	case "members":
		var parts []int
		d.ScanArgs(s.t, "parts", &parts)
		ev := Event{Kind: EventMembers, Epoch: ident.Epoch(arg("epoch"))}
		for _, p := range parts {
			ev.Members = ev.Members.Set(ident.Part(p))
		}
		for _, p := range parts {
			if at := arg("at"); at < 0 || at == p {
				s.step(p, ev)
			}
		}
	case "pages":
		s.pages(ev.Page)
	default:
		d.Fatalf(s.t, "unknown verb %s", d.Cmd)
	}
}

func (s *script) create(parts int, cfg Config) {
	*s = script{t: s.t}
	var members ident.PartSet
	for i := range parts {
		cfg.Self = ident.Part(i)
		s.cores = append(s.cores, New(cfg))
		members = members.Set(cfg.Self)
	}
	for i := range parts {
		s.step(i, Event{Kind: EventMembers, Epoch: 1, Members: members, Fresh: true})
	}
}

// take removes messages (to a part, or all) from the queue.
func (s *script) take(to int) []Event {
	var taken, kept []Event
	for _, ev := range s.queue {
		if to < 0 || int(ev.Msg.To) == to {
			taken = append(taken, ev)
		} else {
			kept = append(kept, ev)
		}
	}
	s.queue = kept
	return taken
}

// deliver delivers the first n messages, counting those that they cause.
func (s *script) deliver(n, to int, again bool) {
	if to >= 0 {
		for _, ev := range s.take(to) {
			s.arrive(ev, again)
		}
		return
	}
	for i := 0; len(s.queue) > 0 && i != n; i++ {
		ev := s.queue[0]
		s.queue = s.queue[1:]
		s.arrive(ev, again)
	}
}

func (s *script) arrive(ev Event, again bool) {
	s.step(int(ev.Msg.To), ev)
	if again {
		s.step(int(ev.Msg.To), ev)
	}
}

// step steps a part and prints its effects.
func (s *script) step(part int, ev Event) {
	if s.dead.Has(ident.Part(part)) {
		return
	}
	c := s.cores[part]
	refused := c.refused()
	c.Step(s.now, ev)
	if c.refused() != refused {
		fmt.Fprintf(&s.out, "p%d refuses %v\n", part, ev.Msg.Kind)
	}
	for _, e := range c.Effects() {
		fmt.Fprintf(&s.out, "p%d %s\n", part, describe(&e))
		if e.Kind == EffectSend {
			s.queue = append(s.queue, Event{Kind: EventMessage, Msg: e.Msg, Body: append([]byte(nil), e.Body...)})
		}
	}
}

func (c *Core) refused() uint64 {
	n := &c.counters
	return n.RefusedEpoch + n.RefusedInvalid + n.RefusedRebuilding + n.RefusedStale
}

func describe(e *Effect) string {
	switch e.Kind {
	case EffectSend:
		return "-> " + describeMsg(&e.Msg)
	case EffectStore:
		return fmt.Sprintf("store %d", e.Page)
	case EffectZero:
		return fmt.Sprintf("zero %d", e.Page)
	case EffectMap:
		return fmt.Sprintf("map %d writable=%t upgrade=%t", e.Page, e.Writable, e.Upgrade)
	case EffectProtect:
		return fmt.Sprintf("protect %d", e.Page)
	case EffectRevoke:
		return fmt.Sprintf("revoke %d", e.Page)
	case EffectPinned:
		return fmt.Sprintf("pinned %d token %d", e.Page, e.Token)
	case EffectSuspect:
		return fmt.Sprintf("suspects %v", e.To)
	case EffectLostPage:
		return fmt.Sprintf("lost page %d token %d", e.Page, e.Token)
	}
	return "?"
}

func describeMsg(m *wire.PageMsg) string {
	b := fmt.Sprintf("%v %v page %d serial %d/%d for %v", m.To, m.Kind, m.Page, epochOf(m.Serial), m.Serial-serialBase(epochOf(m.Serial)), m.Requester)
	if m.Acks != 0 {
		b += fmt.Sprintf(" acks %b", uint64(m.Acks))
	}
	for i, name := range []string{"contents", "write", "zero", "prefetch", "retained", "last"} {
		if m.Flags&(1<<i) != 0 {
			b += " " + name
		}
	}
	if m.Kind == wire.KindReport {
		b += fmt.Sprintf(" records %d", m.BodyBytes/wire.HoldingBytes)
	}
	return b
}

func (s *script) pages(page ident.PageNo) {
	for i, c := range s.cores {
		if s.dead.Has(ident.Part(i)) {
			continue
		}
		fmt.Fprintf(&s.out, "p%d %v", i, c.Page(page))
		if h, ok := c.Holder(page); ok {
			fmt.Fprintf(&s.out, "; directory: %v holders %b busy %t", h.State, uint64(h.Holders), h.Busy)
		}
		s.out.WriteByte('\n')
	}
}
