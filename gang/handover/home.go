package handover

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Spans of a hand-over.
const (
	AskAgain  = 5 * ident.Millisecond // between an answer that did not come and the next attempt
	GiveUp    = ident.Second          // before the commit, so long at most: then the vCPU stays
	noPending = 0
)

// Event is what happens to a Home: Begin, Answer, Lost or Tick.
type Event interface{ event() }

// Begin is the wish to hand a vCPU over. Seq is higher than that of any hand-over before.
type Begin struct {
	Seq      uint64
	VCPU     ident.VCPU
	From, To ident.Part
}

// Answer is what came of an Ask. State is what a Stop captured; it travels on with Install.
type Answer struct {
	Seq     uint64
	Op      Op
	Verdict Verdict
	State   []byte
	Why     string // of a refusal, for people
}

// Lost says that a part is no member of the VM any more.
type Lost struct{ Part ident.Part }

// Tick says that the time of NextDeadline has come.
type Tick struct{}

func (Begin) event()  {}
func (Answer) event() {}
func (Lost) event()   {}
func (Tick) event()   {}

// Ask is to be sent to a part; its answer, or that none came, comes back as an Answer.
type Ask struct {
	To    ident.Part
	Op    Op
	VCPU  ident.VCPU
	Seq   uint64
	State []byte // of an Install
}

// Over is the end of a hand-over: the vCPU is the target's, or still the source's.
type Over struct {
	Seq   uint64
	VCPU  ident.VCPU
	To    ident.Part
	Moved bool
	Why   string // it was not moved, for people
}

// Effect is what is to be done; exactly one is set.
type Effect struct {
	Ask       *Ask
	Committed *Over // from now on the vCPU is the target's
	Over      *Over
}

// Home coordinates the VM's hand-overs, one at a time. A new life of the guest begins with a new Home.
//
//	idle --Begin--> stopping --Stopped--> installing --OK--> (commit) committing --both answered--> idle
//	                    |                      |
//	                    +---refused, late, a part lost---> aborting --both answered--> idle
type Home struct {
	last   uint64
	phase  phase
	move   Begin
	state  []byte
	since  ident.Micros
	why    string
	open   [2]ask // to the source, to the target
	lost   [2]bool
	canary string

	effects []Effect
}

type phase uint8

const (
	idle phase = iota
	stopping
	installing
	committing
	aborting
)

// ask is a message that is to be answered. op is 0 if there is none.
type ask struct {
	op  Op
	due ident.Micros // when to send it again; noPending while an answer may come
}

const (
	source = iota
	target
)

// NewHome returns a Home of a life that begins. canary plants a bug, for the simulator.
func NewHome(canary string) *Home { return &Home{canary: canary} }

// Busy tells whether a hand-over is under way.
func (h *Home) Busy() bool { return h.phase != idle }

// Effects drains what is to be done.
func (h *Home) Effects() []Effect {
	out := h.effects
	h.effects = nil
	return out
}

// NextDeadline is when to step a Tick at the latest.
func (h *Home) NextDeadline() (at ident.Micros, ok bool) {
	if h.phase == stopping || h.phase == installing {
		at, ok = h.since+GiveUp, true
	}
	for _, a := range h.open {
		if a.op != 0 && a.due != noPending && (!ok || a.due < at) {
			at, ok = a.due, true
		}
	}
	return at, ok
}

// Step takes in an event.
func (h *Home) Step(now ident.Micros, ev Event) {
	switch ev := ev.(type) {
	case Begin:
		h.begin(now, ev)
	case Answer:
		h.answer(now, ev)
	case Lost:
		h.lose(ev.Part)
	case Tick:
	default:
		panic(fmt.Sprintf("handover: unknown event %T", ev))
	}
	if (h.phase == stopping || h.phase == installing) && now >= h.since+GiveUp {
		h.abort("it took too long")
	}
	if h.phase == committing && h.canary == CanaryRevoke && now >= h.since+GiveUp {
		h.abort("it took too long")
	}
	for i := range h.open {
		if a := &h.open[i]; a.op != 0 && a.due != noPending && now >= a.due {
			h.send(i)
		}
	}
}

func (h *Home) begin(now ident.Micros, b Begin) {
	if h.phase != idle || b.Seq <= h.last || b.From == b.To {
		h.effects = append(h.effects, Effect{Over: &Over{Seq: b.Seq, VCPU: b.VCPU, To: b.To, Why: "another vCPU is on its way"}})
		return
	}
	*h = Home{last: b.Seq, phase: stopping, move: b, since: now, canary: h.canary, effects: h.effects}
	h.ask(source, Stop)
}

func (h *Home) part(side int) ident.Part {
	if side == source {
		return h.move.From
	}
	return h.move.To
}

// ask makes op what a part is asked for, until it answers.
func (h *Home) ask(side int, op Op) {
	if h.open[side] = (ask{}); !h.lost[side] {
		h.open[side].op = op
		h.send(side)
	}
}

func (h *Home) send(side int) {
	a := &h.open[side]
	a.due = noPending
	out := &Ask{To: h.part(side), Op: a.op, VCPU: h.move.VCPU, Seq: h.move.Seq}
	if a.op == Install {
		out.State = h.state
	}
	h.effects = append(h.effects, Effect{Ask: out})
}

func (h *Home) answer(now ident.Micros, e Answer) {
	side := source
	if e.Op == Install || e.Op == Run || e.Op == Forget {
		side = target
	}
	if h.phase == idle || e.Seq != h.move.Seq || h.open[side].op != e.Op {
		return // of an attempt that is over
	}
	if e.Verdict == NoAnswer {
		h.open[side].due = now + AskAgain
		return
	}
	h.open[side] = ask{}
	switch {
	case h.phase == committing || h.phase == aborting: // a refusal too is an end: the part is in another life
		h.finish()
	case e.Verdict == Refused:
		h.abort(e.Why)
	case e.Op == Stop:
		h.state = e.State
		h.phase = installing
		h.ask(target, Install)
		if h.canary == CanaryCommit {
			h.commit()
		}
	default:
		h.commit()
	}
}

// commit gives the vCPU to the target.
func (h *Home) commit() {
	h.phase = committing
	h.effects = append(h.effects, Effect{Committed: h.over()})
	h.ask(target, Run)
	h.ask(source, Leave)
	h.finish()
}

// abort leaves the vCPU with the source.
func (h *Home) abort(why string) {
	if why == "" {
		why = "it was refused"
	}
	asked := h.phase != stopping
	h.phase, h.why = aborting, why
	if asked {
		h.ask(target, Forget)
	}
	h.ask(source, Resume)
	h.finish()
}

func (h *Home) over() *Over {
	return &Over{Seq: h.move.Seq, VCPU: h.move.VCPU, To: h.move.To, Moved: h.phase == committing, Why: h.why}
}

// finish ends the hand-over once nothing is to be answered any more.
func (h *Home) finish() {
	if h.open[source].op == 0 && h.open[target].op == 0 {
		h.effects = append(h.effects, Effect{Over: h.over()})
		h.phase, h.state = idle, nil
	}
}

// lose goes on without a part.
func (h *Home) lose(part ident.Part) {
	if h.phase == idle {
		return
	}
	for side := range h.open {
		if h.part(side) != part {
			continue
		}
		h.lost[side], h.open[side] = true, ask{}
		if h.phase == stopping || h.phase == installing {
			h.abort("a server that had a share in it was lost")
		} else {
			h.finish()
		}
	}
}
