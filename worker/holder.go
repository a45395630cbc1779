package worker

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/gang/handover"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/wire"
)

// prepareVCPU asks a target to make ready what need not be made while the vCPU stands still.
const prepareVCPU handover.Op = 0x80

// holder is a part's side of handing vCPUs over: what the core says of each, and who waits for one. A vCPU that is not here keeps its descriptor, which
// KVM frees with the VM only, and is used again when it comes back.
//
//	thread at the source:  running --called--> captured, stands aside --home's word--> running, or over
//	thread at the target:  arriving ---------------------------------home's word--> running
//
// mu may be held when guard.mu or vcpuMu is taken, never the other way round.
type holder struct {
	mu     sync.Mutex
	core   *handover.Holder                // protected by mu; nil until the VM's first life begins
	absent map[ident.VCPU]*vcpu            // protected by mu; that this part has made and does not run
	asked  map[ident.VCPU]func(handAnswer) // protected by mu; who waits for a vCPU to be captured
}

// handing is what a vCPU has to do with hand-overs.
type handing struct {
	called  atomic.Bool   // it is to stop and be captured
	retired atomic.Bool   // it is this part's no more
	word    atomic.Uint32 // its thread waits for a change of it when it arrives: 1 means run
	waits   bool          // its thread waits so; protected by holder.mu
	aside   aside         // protected by guard.mu
	over    chan struct{} // closed when its thread is over
	arrived func()        // answers home, on the thread that is about to enter the guest

	origin   []byte       // captured; protected by holder.mu
	at       ident.Micros // when that was; of an arriving one: on this host's clock
	tsc      uint64       // guest's time stamp counter then, 0: not known
	idleTill time.Time    // it was captured while it idled; its thread's
}

// aside is what a vCPU that stands aside is told.
type aside uint8

const (
	asideNot aside = iota
	asideWait
	asideStay
	asideGone
)

// residents returns the vCPUs that this part runs.
func (w *Worker) residents() []*vcpu {
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	return slices.Clone(w.vcpus)
}

// takeHand does what home asks for. It answers at once, or when the vCPU's thread has got so far.
func (w *Worker) takeHand(r handRequest, answer func(handAnswer)) {
	h := &w.holder
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.linux != nil && !w.isSpanned() || h.core == nil || w.guard.restarting.Load() {
		answer(handAnswer{}) // ask again
		return
	}
	if r.op == prepareVCPU {
		if h.core.State(r.vcpu) == handover.Away && int(r.vcpu) < w.spec.VCPUs {
			if _, err := w.arrival(r.vcpu); err != nil {
				w.log.Warn().Err(err).Msg("a vCPU that is to come")
			}
		}
		answer(handAnswer{verdict: handover.Done})
		return
	}
	before := h.core.State(r.vcpu)
	verdict := h.core.Take(r.op, r.vcpu, r.seq)
	if verdict == handover.Refused {
		answer(handAnswer{verdict: verdict, body: fmt.Appendf(nil, "%s has vCPU %d as %s and refuses to %s it", w.spec.Part, r.vcpu, before, r.op)})
		return
	}
	w.carryOut(r, verdict, before != h.core.State(r.vcpu), answer)
}

// carryOut does what an operation changed. It requires holder.mu.
func (w *Worker) carryOut(r handRequest, verdict handover.Verdict, changed bool, answer func(handAnswer)) {
	h := &w.holder
	switch {
	case r.op == handover.Stop && verdict == handover.NoAnswer:
		h.asked[r.vcpu] = answer
		if v := w.resident(r.vcpu); v != nil {
			v.called.Store(true)
			w.guard.nudge()
			v.kick()
		}
		return
	case r.op == handover.Stop: // the answer was lost
		v := w.resident(r.vcpu)
		answer(handAnswer{verdict: verdict, age: bootMicros() - v.at, body: v.origin})
		return
	case !changed:
	case r.op == handover.Install:
		if err := w.install(r); err != nil {
			h.core.Take(handover.Forget, r.vcpu, r.seq)
			answer(handAnswer{verdict: handover.Refused, body: []byte(err.Error())})
			return
		}
	case r.op == handover.Forget:
		w.forgets(h.absent[r.vcpu])
	case r.op == handover.Run:
		v := h.absent[r.vcpu]
		w.comes(v, r.other)
		v.arrived = func() { answer(handAnswer{verdict: handover.Done}) }
		w.admit(v, w.guard.lifeNow.Load())
		return
	case r.op == handover.Leave:
		v := w.resident(r.vcpu)
		w.goesTo(v, r.other)
		w.dismiss(v)
		w.guard.tell(v, asideGone)
		w.slices.changed()
	case r.op == handover.Resume:
		delete(h.asked, r.vcpu)
		v := w.resident(r.vcpu)
		v.called.Store(false)
		w.guard.tell(v, asideStay)
	}
	answer(handAnswer{verdict: verdict})
}

func (w *Worker) resident(id ident.VCPU) *vcpu {
	for _, v := range w.residents() {
		if v.cpu.ID() == id {
			return v
		}
	}
	return nil
}

// kick throws the vCPU out of the guest and out of idling.
func (v *vcpu) kick() {
	v.cpu.Kick()
	v.rouse()
}

// rouse ends the vCPU's idling.
func (v *vcpu) rouse() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// arrival returns a vCPU that is not here, with its thread waiting for it. It requires holder.mu.
func (w *Worker) arrival(id ident.VCPU) (*vcpu, error) {
	h := &w.holder
	v := h.absent[id]
	if v == nil {
		made, err := w.makeVCPUs([]ident.VCPU{id})
		if err != nil {
			return nil, err
		}
		v = made[0]
		h.absent[id] = v
		if v.seat != nil {
			w.plane.mu.Lock()
			w.plane.stalled.add(v)
			w.plane.mu.Unlock()
		}
	}
	if v.waits {
		return v, nil
	}
	if v.over != nil {
		select {
		case <-v.over:
		case <-time.After(handDeadline):
			return nil, fmt.Errorf("vCPU %d has not left yet", id)
		}
	}
	v.called.Store(false)
	v.retired.Store(false)
	v.word.Store(0)
	v.waits, v.over, v.arrived, v.tsc, v.idleTill = true, make(chan struct{}), nil, 0, time.Time{}
	go w.runVCPU(v, true)
	return v, nil
}

// install puts a captured state in place. It requires holder.mu.
func (w *Worker) install(r handRequest) error {
	v, err := w.arrival(r.vcpu)
	if err != nil {
		return err
	}
	v.at = bootMicros() - r.age
	if v.seat != nil {
		return w.sit(v, r)
	}
	return v.begin(r.state)
}

// admit makes a vCPU, whose thread waits for it, one that this part runs. It requires holder.mu.
func (w *Worker) admit(v *vcpu, life uint64) {
	delete(w.holder.absent, v.cpu.ID())
	v.life, v.waits = life, false
	w.guard.tell(v, asideNot)
	w.vcpuMu.Lock()
	w.vcpus = append(w.vcpus, v)
	w.vcpuMu.Unlock()
	w.running.Add(1)
	w.guard.join()
	v.word.Store(1)
	futex.WakeAll(&v.word)
	w.slices.changed()
}

// dismiss makes a vCPU one that this part does not run. Its thread ends when it looks. It requires holder.mu.
func (w *Worker) dismiss(v *vcpu) {
	v.retired.Store(true)
	w.vcpuMu.Lock()
	w.vcpus = slices.DeleteFunc(slices.Clone(w.vcpus), func(o *vcpu) bool { return o == v })
	w.vcpuMu.Unlock()
	w.holder.absent[v.cpu.ID()] = v
}

// place begins a life of the guest, in which this part runs these vCPUs. All of them must be held.
func (w *Worker) place(mine []ident.VCPU) error {
	h := &w.holder
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.core == nil {
		h.core = handover.NewHolder(w.spec.VCPUs, "")
		h.absent, h.asked = map[ident.VCPU]*vcpu{}, map[ident.VCPU]func(handAnswer){}
	}
	h.core.Begin(mine)
	clear(h.asked)
	for _, v := range w.residents() {
		v.called.Store(false)
		if !slices.Contains(mine, v.cpu.ID()) {
			w.dismiss(v)
		}
	}
	for _, id := range mine {
		if w.resident(id) != nil {
			continue
		}
		v, err := w.arrival(id)
		if err != nil {
			return err
		}
		w.admit(v, 0) // of no life: it asks for what it begins with
	}
	return nil
}

// arrive waits on a vCPU's new thread until the vCPU is here.
func (w *Worker) arrive(v *vcpu) {
	for v.word.Load() == 0 {
		futex.Wait(&v.word, 0, bellSleep)
	}
	if err := w.turnClockOn(v); err != nil {
		w.log.Warn().Err(err).Msg("the clock of a vCPU that arrived")
	}
	if v.arrived != nil {
		v.arrived()
	}
}

// turnClockOn makes up for the time since the vCPU was captured. It runs on the vCPU's thread.
func (w *Worker) turnClockOn(v *vcpu) error {
	switch {
	case v.seat != nil:
		if c := w.linux.span.clock.Load(); v.life != 0 && c != nil {
			return w.setClock(v, *c, v.life)
		}
		return nil
	case v.tsc == 0:
		return nil
	}
	khz, err := v.cpu.TSCKHz()
	if err != nil {
		return err
	}
	return v.cpu.SetTSC(v.tsc + uint64(max(0, bootMicros()-v.at))*uint64(khz)/1000)
}

// standAside captures a vCPU that home wants elsewhere, and waits for home's word. It returns false if the vCPU is another part's now. It runs on the
// vCPU's thread.
func (w *Worker) standAside(v *vcpu) bool {
	if !w.settles(v) {
		return true
	}
	v.called.Store(false)
	origin, err := w.captureMoving(v)
	if err != nil {
		w.fail(err)
		return true
	}
	if !w.captured(v, origin) {
		w.stays(v)
		return true
	}
	v.asking.Store(true) // the watchdog sees to it that this ends
	defer v.asking.Store(false)
	if !w.guard.standAside(v) {
		return false
	}
	w.stays(v)
	return true
}

// captured gives home a vCPU's state; false: it is not wanted any more.
func (w *Worker) captured(v *vcpu, origin []byte) bool {
	h := &w.holder
	h.mu.Lock()
	defer h.mu.Unlock()
	if v.retired.Load() || v.life != w.guard.lifeNow.Load() || !h.core.Captured(v.cpu.ID()) {
		return false
	}
	v.origin, v.at = origin, bootMicros()
	w.guard.tell(v, asideWait)
	if answer := h.asked[v.cpu.ID()]; answer != nil {
		delete(h.asked, v.cpu.ID())
		answer(handAnswer{verdict: handover.Done, body: origin})
	}
	return true
}

// tell changes what a vCPU that stands aside is told.
func (g *guard) tell(v *vcpu, what aside) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v.aside = what
	g.slot.wake()
}

// nudge has all that wait look again.
func (g *guard) nudge() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slot.wake()
}

// standAside waits until v is told what becomes of it, and returns false if it has left. A new life takes it along.
func (g *guard) standAside(v *vcpu) bool {
	v.alarm.set(0)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked++
	defer func() { g.parked-- }()
	g.stops.ring()
	for v.aside == asideWait && g.life == v.life && !g.stopped {
		g.slot.wait(&g.mu)
	}
	return v.aside != asideGone && !v.retired.Load()
}

// handleVCPU does what home asks for over the page plane.
func (w *Worker) handleVCPU(req link.DeviceRequest) {
	r, err := decodeHandRequest(req.Payload)
	if err != nil {
		req.Reply(wire.DeviceBad, nil)
		return
	}
	work := func() { w.takeHand(r, func(a handAnswer) { req.Reply(wire.DeviceOK, a.encode()) }) }
	if r.op == handover.Install || r.op == prepareVCPU { // these take a while, and may wait for a thread
		r.state = slices.Clone(r.state)
		go work()
		return
	}
	work()
}

// lowerPriority puts a vCPU's thread below those that serve pages.
func lowerPriority() { priority.Lower(unix.Gettid()) }
