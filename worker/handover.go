package worker

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/gang/handover"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// handDeadline bounds one attempt of asking a part for something in a hand-over.
const handDeadline = 100 * time.Millisecond

// handovers is home's side of handing vCPUs over, see package gang/handover: the core, and a goroutine that carries one hand-over through.
type handovers struct {
	w *Worker
	// cutting is held over a hand-over, and over a cut: so a checkpoint has each vCPU exactly once.
	cutting sync.Mutex

	mu   sync.Mutex
	last uint64             // protected by mu; number of the last one that was asked for
	done *wire.WorkerHanded // protected by mu; how it ended
}

// handRequest is what home asks a part for, on the page plane:
//
//	op 1 byte, vCPU 2, number 8; of an install: the state's age in microseconds 8, the state; of a run or a leave: where the vCPU was, or where it is 2
type handRequest struct {
	op    handover.Op
	vcpu  ident.VCPU
	seq   uint64
	other ident.Part
	age   ident.Micros
	state []byte
}

const handRequestBytes = 1 + 2 + 8

func (r *handRequest) encode() []byte {
	b := append(make([]byte, 0, handRequestBytes+8+len(r.state)), byte(r.op))
	b = binary.LittleEndian.AppendUint16(b, uint16(r.vcpu))
	b = binary.LittleEndian.AppendUint64(b, r.seq)
	if r.op == handover.Install {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.age))
		b = append(b, r.state...)
	}
	if r.hasOther() {
		b = binary.LittleEndian.AppendUint16(b, uint16(r.other))
	}
	return b
}

func (r *handRequest) hasOther() bool { return r.op == handover.Run || r.op == handover.Leave }

func decodeHandRequest(b []byte) (r handRequest, err error) {
	if len(b) < handRequestBytes {
		return r, fmt.Errorf("request of %d bytes about a vCPU", len(b))
	}
	r = handRequest{op: handover.Op(b[0]), vcpu: ident.VCPU(binary.LittleEndian.Uint16(b[1:])), seq: binary.LittleEndian.Uint64(b[3:])}
	b = b[handRequestBytes:]
	switch {
	case r.op == handover.Install && len(b) >= 8:
		r.age, r.state = ident.Micros(binary.LittleEndian.Uint64(b)), b[8:]
	case r.hasOther() && len(b) == 2:
		r.other = ident.Part(binary.LittleEndian.Uint16(b))
	case len(b) > 0, !r.op.Known() && r.op != prepareVCPU, r.op == handover.Install, r.hasOther():
		return r, fmt.Errorf("request %v of %d bytes about a vCPU", r.op, len(b))
	}
	return r, nil
}

// handAnswer is a part's answer: verdict 1 byte, the age of the state 8, then the state or, of a refusal, why.
type handAnswer struct {
	verdict handover.Verdict
	age     ident.Micros
	body    []byte
}

func (a *handAnswer) encode() []byte {
	b := append(make([]byte, 0, 9+len(a.body)), byte(a.verdict))
	b = binary.LittleEndian.AppendUint64(b, uint64(a.age))
	return append(b, a.body...)
}

func decodeHandAnswer(b []byte) (a handAnswer, ok bool) {
	if len(b) < 9 {
		return a, false
	}
	return handAnswer{verdict: handover.Verdict(b[0]), age: ident.Micros(binary.LittleEndian.Uint64(b[1:])), body: b[9:]}, true
}

// begin takes serve's wish. One that was taken before is answered by what came of it, if it has ended.
func (h *handovers) begin(want wire.WorkerHand) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if want.Seq <= h.last {
		return
	}
	h.last, h.done = want.Seq, nil
	go h.run(want)
}

func (h *handovers) end(e wire.WorkerHanded) {
	h.mu.Lock()
	if e.Seq == h.last {
		h.done = &e
	}
	h.mu.Unlock()
	h.w.control.send(wire.FromWorker{Handed: &e})
}

// ended returns how the last hand-over ended, nil if none has, or another one is under way.
func (h *handovers) ended() *wire.WorkerHanded {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.done
}

// carrier carries one hand-over through.
type carrier struct {
	h       *handovers
	want    wire.WorkerHand
	core    *handover.Home
	life    uint64
	members *wire.WorkerMembers
	asks    []handover.Ask
	age     ident.Micros // of the state, when home got it
	stopped time.Time    // when home got it
	down    ident.Micros
	over    *handover.Over
}

// run carries one hand-over through. It ends early when the guest's life does: the next one begins with the registry's placement.
func (h *handovers) run(want wire.WorkerHand) {
	w := h.w
	w.awaitGuest()
	h.cutting.Lock()
	defer h.cutting.Unlock()
	c := &carrier{h: h, want: want, core: handover.NewHome(""), life: w.guard.lifeNow.Load(), members: w.members.Load()}
	if why := w.cannotHandOver(want.VCPU); why != "" {
		w.handedOver(want.VCPU, want.To, false)
		h.end(wire.WorkerHanded{Seq: want.Seq, Why: why})
		return
	}
	c.prepare()
	c.step(handover.Begin{Seq: want.Seq, VCPU: want.VCPU, From: want.From, To: want.To})
	for c.over == nil {
		if w.ctx.Err() != nil || w.guard.restarting.Load() || w.guard.lifeNow.Load() != c.life {
			h.end(wire.WorkerHanded{Seq: want.Seq, Why: "the guest's life ended meanwhile"})
			return
		}
		c.followMembers()
		if len(c.asks) > 0 {
			a := c.asks[0]
			c.asks = c.asks[1:]
			c.ask(a)
			continue
		}
		at, _ := c.core.NextDeadline()
		time.Sleep(time.Duration(min(max(0, at-bootMicros()), 10*ident.Millisecond)) * time.Microsecond)
		c.step(handover.Tick{})
	}
	e := wire.WorkerHanded{Seq: want.Seq, Moved: c.over.Moved, Why: c.over.Why, DownMicros: c.down}
	w.log.Debug().Uint64("seq", e.Seq).Uint16("vcpu", uint16(want.VCPU)).Bool("moved", e.Moved).Int64("us", int64(e.DownMicros)).Msg("hand-over of a vCPU has ended " + e.Why)
	w.handedOver(want.VCPU, want.To, e.Moved)
	h.end(e)
}

// beginsWithin bounds how long a hand-over waits for the guest's image.
const beginsWithin = 5 * time.Second

// awaitGuest waits for the guest to begin.
func (w *Worker) awaitGuest() {
	h := w.home.Load()
	if h == nil {
		return
	}
	loaded, gone := h.waits()
	select {
	case <-loaded:
	case <-gone:
	case <-w.ctx.Done():
	case <-time.After(beginsWithin):
	}
}

// cannotHandOver says why a vCPU cannot be handed over now, if so.
func (w *Worker) cannotHandOver(id ident.VCPU) string {
	h := w.home.Load()
	w.cutter.mu.Lock()
	frozen := w.cutter.frozen != 0
	w.cutter.mu.Unlock()
	switch {
	case w.linux != nil && !w.isSpanned():
		return "the vCPUs of a Linux machine on one server move with it only: start it with --span to have them on several"
	case w.linux != nil && id == bootVCPU:
		return "the boot processor of a Linux machine stays at home, with the devices"
	case w.linux != nil && w.members.Load().Level() < wire.LevelRehoming:
		return "a part of the vm is of an older version of the program, which does not take over processors of a Linux machine: it is of the new one once the vm has been started again, or moved to a server that is"
	case h == nil || !h.isLoaded():
		return "the guest has not begun"
	case frozen:
		return "the vm is just being moved"
	case w.guard.isHalted():
		return "the guest has crashed"
	}
	return ""
}

// followMembers tells the core who has left.
func (c *carrier) followMembers() {
	m := c.h.w.members.Load()
	if m == c.members {
		return
	}
	c.members = m
	for _, part := range []ident.Part{c.want.From, c.want.To} {
		if !slices.ContainsFunc(m.Members, func(o wire.WorkerMember) bool { return o.Part == part }) {
			c.step(handover.Lost{Part: part})
		}
	}
}

func (c *carrier) step(ev handover.Event) {
	c.core.Step(bootMicros(), ev)
	for _, e := range c.core.Effects() {
		switch {
		case e.Ask != nil:
			c.asks = append(c.asks, *e.Ask)
		case e.Over != nil:
			c.over = e.Over
		}
	}
}

// prepare has the target make the vCPU and its thread, so that the vCPU does not stand still for that. It may fail.
func (c *carrier) prepare() {
	c.send(c.want.To, handRequest{op: prepareVCPU, vcpu: c.want.VCPU, seq: c.want.Seq})
}

// ask asks a part once.
func (c *carrier) ask(a handover.Ask) {
	r := handRequest{op: a.Op, vcpu: a.VCPU, seq: a.Seq, state: a.State, other: c.want.To}
	if a.Op == handover.Run {
		r.other = c.want.From
	}
	if a.Op == handover.Install {
		r.age = c.age + ident.Micros(time.Since(c.stopped).Microseconds())
	}
	answer, ok := c.send(a.To, r)
	ev := handover.Answer{Seq: a.Seq, Op: a.Op}
	if ok {
		switch ev.Verdict = answer.verdict; {
		case answer.verdict == handover.Refused:
			ev.Why = string(answer.body)
		case a.Op == handover.Stop:
			ev.State, c.age, c.stopped = answer.body, answer.age, time.Now()
		case a.Op == handover.Run:
			c.down = c.age + ident.Micros(time.Since(c.stopped).Microseconds())
		}
	}
	c.step(ev)
}

// send asks a part, which may be this one, and waits for its answer.
func (c *carrier) send(to ident.Part, r handRequest) (handAnswer, bool) {
	w := c.h.w
	if to == w.spec.Part {
		wait := make(chan handAnswer, 1)
		w.takeHand(r, func(a handAnswer) { wait <- a })
		select {
		case a := <-wait:
			return a, true
		case <-time.After(handDeadline):
			return handAnswer{}, false
		}
	}
	body, status, err := w.plane.pages.Request(to, c.members.Epoch, wire.DeviceVCPU, r.encode(), time.Now().Add(handDeadline))
	if err != nil || status != wire.DeviceOK {
		return handAnswer{}, false
	}
	return decodeHandAnswer(body)
}
