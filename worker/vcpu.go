package worker

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/machine"
)

// Ports of the payload ABI, version 1.
const (
	portConsole = 0x3f8 // out, 8 bits: a console byte
	portExit    = 0xe0  // out, 32 bits: end the VM with this status
	portIdle    = 0xe4  // out, 32 bits: idle this vCPU for so many microseconds
	portRecord  = 0xe8  // out, 32 bits: an output record
	portClock   = 0xec  // in, 32 bits: milliseconds since the VM first started
)

// vcpu is one virtual CPU that runs on this part.
type vcpu struct {
	cpu       *kvm.VCPU
	seat      *machine.Seat // with its local APIC; nil unless it is of a Linux machine over several parts
	life      uint64        // the life that it is in; its thread's
	deviceSeq uint64        // of its last device request; its thread's, or whoever holds the guard
	wake      chan struct{} // ends an idle early: the vCPU was kicked
	exits     atomic.Uint64
	runMicros atomic.Int64
	idle      atomic.Bool    // has left the gang
	inside    atomic.Bool    // in KVM_RUN
	looked    atomic.Bool    // thrown out to see whether it spins
	seen      uint64         // how often it had left the guest at the last look, plus one, 0: it was not inside then; the watcher's
	sample    spinSample     // where it was then; its thread's
	asking    atomic.Bool    // waits for the home part, which does not answer
	idleSum   atomic.Int64   // microseconds that it was out of the gang, until idleFrom
	idleFrom  atomic.Int64   // when it left the gang, 0 if it is in it
	reset     *kvm.VCPUState // before its first instruction; its thread's
	standing  bool           // counted as idle because the VM is paused; protected by the worker's vcpuMu
	handing
	queue  queue // where it waits for its turn; its thread's
	alarm  alarm // for the next that is due of the gang's turns; its thread's
	ended  int64 // CPU time of its thread when it left its last turn, in nanoseconds, 0: that has been counted; its thread's
	pinned int   // the CPU that its thread is bound to, plus one; 0: to none. The slicer's
}

// errNewLife ends what a vCPU is doing because the VM goes back to a checkpoint.
var errNewLife = errors.New("the VM goes back to a checkpoint")

// kickAll throws all vCPUs of this part out of the guest and out of idling.
func (w *Worker) kickAll() {
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	for _, v := range w.vcpus {
		v.kick()
	}
}

// runVCPU is a vCPU's thread. At the begin of each of the VM's lives it loads the vCPU's state, then runs the guest until the life ends.
func (w *Worker) runVCPU(v *vcpu, arriving bool) {
	defer close(v.over)
	v.cpu.Bind()
	defer v.cpu.Unbind()
	lowerPriority()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // turns begin to the microsecond
	defer v.alarm.drop()
	if arriving {
		w.arrive(v)
	}
	defer w.running.Done()
	defer w.guard.leave()
	for {
		now := bootMicros()
		w.endTurn(v, now)
		life, ok := w.guard.enter(now, v.life, &v.called, &v.queue)
		if !ok || v.retired.Load() {
			v.queue.leave()
			return
		}
		if life != v.life || v.called.Load() || !v.idleTill.IsZero() {
			v.queue.leave() // it does not go to its guest
		}
		var err error
		switch {
		case life != v.life:
			if err = w.loadVCPU(v, life); err == nil {
				v.life = life
			}
		case v.called.Load():
			if !w.standAside(v) {
				return
			}
		case !v.idleTill.IsZero():
			w.idle(v, time.Until(v.idleTill))
		default:
			w.setAlarm(v)
			err = w.runOnce(v)
		}
		if err != nil {
			v.queue.leave()
			v.alarm.set(0)
		}
		switch {
		case err == nil, errors.Is(err, errNewLife):
		case errors.Is(err, errEnded):
			if !w.guard.awaitLife(v.life) { // it may have to run again: the end is not final before its checkpoint is safe
				return
			}
		default:
			if !w.guard.restarting.Load() { // in a life that is being given up it runs on whatever pages it was given, and fails as it may
				w.failGuest(fmt.Errorf("vCPU %d: %w", v.cpu.ID(), err), v.cpu.Dump())
			}
			if !w.guard.awaitLife(v.life) { // it may boot again
				return
			}
		}
	}
}

// runOnce lets the guest run to its next exit, and acts on that.
func (w *Worker) runOnce(v *vcpu) error {
	if w.drill.due() {
		err := errors.New("guest failed: made to crash by a drill")
		if w.linux != nil { // as one does that resets its machine after a panic
			w.crash(fmt.Errorf("vCPU %d: %w", v.cpu.ID(), err), v.cpu.Dump())
			return nil
		}
		return err
	}
	if v.seat != nil {
		return w.runSeat(v)
	}
	began := time.Now()
	v.inside.Store(true)
	exit, err := v.cpu.Run()
	v.left(began)
	if err != nil {
		return err
	}
	return w.handle(v, exit)
}

// left notes that the vCPU has left the guest, in which it was since a time. Its head start, if it had one, is over.
func (v *vcpu) left(began time.Time) {
	v.inside.Store(false)
	v.queue.leave()
	v.exits.Add(1)
	v.runMicros.Add(time.Since(began).Microseconds())
}

// handle acts on one exit.
func (w *Worker) handle(v *vcpu, exit kvm.Exit) error {
	switch {
	case exit.Reason == kvm.Interrupted:
		return nil
	case w.linux != nil:
		return w.handleLinux(v, exit)
	}
	if a, ok := w.isDeviceAccess(exit); ok {
		return w.accessDevice(v, a)
	}
	if exit.Reason == kvm.IO && exit.Count == 1 {
		return w.handlePort(v, exit)
	}
	return fmt.Errorf("guest failed: %s", exit)
}

func (w *Worker) handlePort(v *vcpu, exit kvm.Exit) error {
	value := uint32(exit.Data)
	switch {
	case exit.Port == portConsole && exit.Write && exit.Size == 1:
		_, err := w.device(v, opConsole, value)
		return err
	case exit.Size != 4:
	case exit.Port == portRecord && exit.Write:
		_, err := w.device(v, opRecord, value)
		return err
	case exit.Port == portClock && !exit.Write:
		millis, err := w.device(v, opClock, 0)
		v.cpu.SetIO(millis)
		return err
	case exit.Port == portIdle && exit.Write:
		w.idle(v, time.Duration(value)*time.Microsecond)
		return nil
	case exit.Port == portExit && exit.Write:
		if _, err := w.device(v, opExit, value); err != nil {
			return err
		}
		return errEnded
	}
	return fmt.Errorf("guest failed: %s: no such port in the payload ABI", exit)
}

// idle keeps the vCPU out of the guest for d, or until it is kicked: whoever kicks it wants it to look at the guard.
func (w *Worker) idle(v *vcpu, d time.Duration) {
	until, paused := time.Now().Add(d), w.guard.pausedFor()
	v.idleTill = time.Time{}
	if d >= leavesGang {
		v.alarm.set(0)
		w.slices.idles(v, true)
		defer w.slices.idles(v, false)
	}
	for {
		if life, ok := w.guard.enterIdle(v.life, &v.called); !ok || life != v.life {
			return
		}
		if v.called.Load() {
			v.idleTill = until.Add(w.guard.pausedFor() - paused) // it goes on idling wherever it goes on
			return
		}
		left := time.Until(until.Add(w.guard.pausedFor() - paused)) // it did not see the time of a pause pass
		if left <= 0 || w.drill.wanted.Load() {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
			return
		case <-v.wake:
			timer.Stop()
		}
	}
}

// newVCPUs makes this part's vCPUs.
func newVCPUs(vm *kvm.VM, ids []ident.VCPU) ([]*vcpu, error) {
	var all []*vcpu
	for _, id := range ids {
		cpu, err := vm.CreateVCPU(id)
		if err != nil {
			return nil, err
		}
		all = append(all, &vcpu{cpu: cpu, wake: make(chan struct{}, 1)})
	}
	return all, nil
}

// idled is for how long the vCPU was out of its gang.
func (v *vcpu) idled(now ident.Micros) ident.Micros {
	sum := ident.Micros(v.idleSum.Load())
	if from := ident.Micros(v.idleFrom.Load()); from != 0 {
		sum += max(0, now-from)
	}
	return sum
}
