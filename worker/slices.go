package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/wire"
)

// leavesGang is how long a vCPU must idle to leave its gang. For less it is not worth giving the slot to another and asking for it again; and a
// guest that idles a million times a second causes no message at all.
const leavesGang = time.Millisecond

// A note can be lost: serve's socket takes few datagrams at a time. So a part that is held although it has work says so again, and a vCPU
// that leaves or comes back tries until the note is taken: it would only wait otherwise.
const (
	remindAfter  = 20 * ident.Millisecond  // what was not taken
	remindAnyway = 500 * ident.Millisecond // what was
	noteAttempts = 100
	notePause    = time.Millisecond
	owedMost     = 64 // notes on past turns
)

// holdEarly is how much earlier than it is told a part of a VM on several servers lets go of its slots, so that its vCPUs have left them, and who else has waited for
// the CPU has had it for a moment, when those of the next gang begin.
const holdEarly = 150 * ident.Micros(1)

// netLag is after how long the slicer's thread does what a vCPU's would have done, had one looked.
const netLag = 20 * ident.Millisecond

// slicer carries out serve's orders: it lets this part's vCPUs run, on the CPUs of their slots, or holds them, to the microsecond as far as the
// kernel's timers and scheduler allow. It has a thread of its own, ahead of all vCPUs, that takes orders in and does what is to be done at once; what is to be
// done later the vCPUs' threads do when the time has come (see turn).
//
//	free --order--> run <--order--> hold
//	     <--order, end of the last order, serve gone-- run, hold
type slicer struct {
	w    *Worker
	fd   int // datagram socket: orders come in, notes go out
	bell unix.SockaddrUnix
	idle atomic.Int32  // vCPUs that have left the gang
	mode atomic.Uint32 // wire.SliceMode; written by the thread

	turnNanos atomic.Int64 // of CPU time that the vCPUs' threads used to go from turn to turn: to leave the guest, wait, and be back

	slotSum  atomic.Int64 // microseconds that the gang was not held, until slotFrom
	slotFrom atomic.Int64 // when it was let go, 0 if it is held

	paused atomic.Bool // the VM is paused: no vCPU is in the gang

	order   wire.SliceOrder  // carried out, and until when it holds; protected by the guard's mu
	pending []wire.SliceTurn // for times to come, by time; protected by the guard's mu
	remind  ident.Micros     // when to say again that there is work; the thread's
	owed    []wire.SliceNote // when the vCPUs of past turns began, which serve is told when it gives the next order; protected by the guard's mu
	minded  atomic.Bool      // there are no alarms: the thread carries out all that is due
	refused atomic.Bool      // serve's socket has not taken the last note
	in      [wire.SliceDatagramLimit]byte
}

// newSlicer makes the socket, in the working directory; orders may come at once.
func newSlicer(w *Worker) (*slicer, error) {
	s := &slicer{w: w, bell: unix.SockaddrUnix{Name: filepath.Join("..", wire.WorkersBell)}}
	if err := os.Remove(wire.WorkerRunSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket for slices: %w", err)
	}
	s.slotFrom.Store(int64(bootMicros()))
	w.guard.slot.carryOut = s.passTurns
	var err error
	if s.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("socket for slices: %w", err)
	}
	if err := unix.Bind(s.fd, &unix.SockaddrUnix{Name: wire.WorkerRunSocket}); err != nil {
		return nil, fmt.Errorf("socket for slices: %w", err)
	}
	return s, nil
}

// run is the slicer's thread, for as long as the process lives.
func (s *slicer) run() {
	runtime.LockOSThread()
	priority.First()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	for {
		s.receive()
		s.lapse()
		s.remindServe()
		s.sleep()
	}
}

// passTurns carries out what is due. It requires the guard's mu.
func (s *slicer) passTurns(now ident.Micros) {
	for len(s.pending) > 0 && now >= s.pending[0].At {
		t := s.pending[0]
		s.pending = s.pending[1:]
		s.carryOut(t)
	}
	s.setDue()
}

// setDue says when the next is due. It requires the guard's mu.
func (s *slicer) setDue() (changed bool) {
	due := int64(notDue)
	if len(s.pending) > 0 {
		due = int64(s.pending[0].At)
	}
	return s.w.guard.slot.due.Swap(due) != due
}

// lapse ends the orders whose time is over.
func (s *slicer) lapse() {
	g := s.w.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(s.pending); n > 0 && (s.minded.Load() || bootMicros() >= s.pending[n-1].At+netLag) {
		g.slot.pass(bootMicros())
	}
	if s.order.Mode != wire.SliceFree && bootMicros() >= s.order.Until {
		s.w.log.Warn().Msg("no word about slices any more: running without")
		s.pending = nil
		s.carryOut(wire.SliceTurn{At: bootMicros()})
		s.setDue()
	}
}

// remindServe says again that this part is held although it has work.
func (s *slicer) remindServe() {
	now := bootMicros()
	s.w.guard.mu.Lock()
	mode, known := s.order.Mode, len(s.pending)
	s.w.guard.mu.Unlock()
	if mode != wire.SliceHold || known > 0 || now < s.remind { // who has been told of its turn need not ask for one
		return
	}
	if busy := s.busy(); busy > 0 {
		s.send(wire.SliceNote{VM: s.w.spec.VM, Busy: busy})
	}
	s.remind = now + remindAnyway
	if s.refused.Load() {
		s.remind = now + remindAfter
	}
}

// sleep waits for an order, for the end of the present one, or until something should have been carried out long ago.
func (s *slicer) sleep() {
	var timeout *unix.Timespec
	until := s.wakeAt()
	if until != 0 {
		ts := unix.NsecToTimespec(max(0, int64(until-bootMicros())*1000))
		timeout = &ts
	}
	_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, timeout, nil) // whatever it returns, look at everything
}

// wakeAt is until when there is nothing to do for the thread, 0: for ever.
func (s *slicer) wakeAt() (until ident.Micros) {
	g := s.w.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.order.Mode != wire.SliceFree {
		until = s.order.Until
	}
	if n := len(s.pending); n > 0 {
		at := s.pending[n-1].At + netLag
		if s.minded.Load() {
			at = s.pending[0].At
		}
		if until == 0 || at < until {
			until = max(1, at)
		}
	}
	if s.order.Mode == wire.SliceHold && len(s.pending) == 0 && s.busy() > 0 {
		until = min(until, s.remind)
	}
	return until
}

// receive takes all orders that are there. One for a time to come leaves those for earlier times in force, and takes the place of those for later ones.
func (s *slicer) receive() {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.in[:], 0)
		if err != nil {
			return
		}
		o, err := wire.DecodeSliceOrder(s.in[:n])
		if err != nil {
			s.w.log.Warn().Err(err).Msg("an order about slices is malformed")
			continue
		}
		s.obey(&o)
	}
}

// obey takes an order in.
func (s *slicer) obey(o *wire.SliceOrder) {
	g := s.w.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slot.pass(bootMicros())
	s.settle()
	s.order.Until = o.Until
	due := g.slot.due.Load()
	for len(s.pending) > 0 && s.pending[len(s.pending)-1].At >= o.At {
		s.pending = s.pending[:len(s.pending)-1]
	}
	s.append(wire.SliceTurn{Number: o.Number, Mode: o.Mode, At: o.At, CPUs: o.CPUs})
	for _, t := range o.Next {
		s.append(t)
	}
	s.passTurns(bootMicros())
	if g.slot.due.Load() == due {
		return
	}
	g.slot.wake() // who sleeps or runs until another time looks again
	if g.open.Load() {
		s.w.kickGuests()
	}
}

// append adds what is to be done at a time after all that is known. It requires the guard's mu.
func (s *slicer) append(t wire.SliceTurn) {
	together := !s.w.alone()
	s.w.guard.slot.together = together
	if t.Mode == wire.SliceHold && together {
		t.At = max(0, t.At-holdEarly)
	}
	t.At = max(t.At, bootMicros())
	s.pending = append(s.pending, t)
}

// carryOut makes the order the present one. It requires the guard's mu.
func (s *slicer) carryOut(o wire.SliceTurn) {
	before := s.order
	s.order.Number, s.order.Mode = o.Number, o.Mode
	s.mode.Store(uint32(o.Mode))
	s.countSlots(o.At, o.Mode == wire.SliceHold)
	note := wire.SliceNote{VM: s.w.spec.VM}
	switch {
	case o.Mode == wire.SliceHold:
		note.First, note.Last = s.w.guard.setTurn(false, s.w.kickGuests)
	case o.Mode == wire.SliceRun && before.Mode == wire.SliceRun:
		s.pin(o.CPUs)
		s.order.Number = before.Number // its turn goes on
	case o.Mode == wire.SliceRun:
		s.pin(o.CPUs)
		note.First, note.Last = s.w.guard.setTurn(true, nil)
	default:
		s.pin(nil)
		note.First, note.Last = s.w.guard.setTurn(true, nil)
	}
	if before.Mode == wire.SliceRun && note.First != 0 && !s.w.alone() { // when the vCPUs of a server began is of interest beside others only
		note.Number = before.Number
		if len(s.owed) < owedMost {
			s.owed = append(s.owed, note)
		} // later: at this moment it would only wake serve's thread, which has priority over the vCPUs that begin
	}
	if before.Mode == wire.SliceFree {
		if note.Busy = s.busy(); !s.send(note) {
			s.remind = min(s.remind, bootMicros()+remindAfter)
		}
	}
}

// settle sends the notes that are owed, as many as serve's socket takes.
func (s *slicer) settle() {
	for len(s.owed) > 0 {
		n := s.owed[0]
		if n.Busy = s.busy(); !s.send(n) {
			return
		}
		s.owed = s.owed[1:]
	}
}

// countSlots notes that the gang is held from a time on, or not. That is the time of the turn, not the time at which a vCPU noticed: its thread may have been
// put off the CPU by the next gang's, and be back only when that one waits for something.
func (s *slicer) countSlots(at ident.Micros, held bool) {
	switch from := s.slotFrom.Load(); {
	case held && from != 0:
		s.slotFrom.Store(0)
		s.slotSum.Add(max(0, int64(at)-from))
	case !held && from == 0:
		s.slotFrom.Store(int64(at))
	}
}

// slotTime is for how long the gang was not held.
func (s *slicer) slotTime(now ident.Micros) ident.Micros {
	s.w.guard.pass()
	sum := ident.Micros(s.slotSum.Load())
	if from := ident.Micros(s.slotFrom.Load()); from != 0 {
		sum += max(0, now-from)
	}
	return sum
}

// busy counts the vCPUs that are in the gang.
func (s *slicer) busy() int {
	if s.paused.Load() {
		return 0
	}
	s.w.vcpuMu.Lock()
	defer s.w.vcpuMu.Unlock()
	return len(s.w.vcpus) - int(s.idle.Load())
}

// say says that the VM is paused, so that none of its vCPUs is in the gang, or goes on.
func (s *slicer) say(paused bool) {
	s.paused.Store(paused)
	s.note()
}

// idles says that a vCPU leaves the gang or comes back.
func (s *slicer) idles(v *vcpu, on bool) {
	v.idle.Store(on)
	now := int64(bootMicros())
	if on {
		s.idle.Add(1)
		v.idleFrom.Store(now)
	} else {
		s.idle.Add(-1)
		v.idleSum.Add(now - v.idleFrom.Swap(0))
	}
	s.note()
}

// note says how many vCPUs are in the gang.
func (s *slicer) note() {
	for range noteAttempts {
		if s.mode.Load() == uint32(wire.SliceFree) || s.send(wire.SliceNote{VM: s.w.spec.VM, Busy: s.busy()}) {
			return
		}
		time.Sleep(notePause)
	}
}

// changed says that vCPUs have come or gone.
func (s *slicer) changed() {
	if s.mode.Load() != uint32(wire.SliceFree) {
		s.send(wire.SliceNote{VM: s.w.spec.VM, Busy: s.busy()})
	}
}

// send tells serve; false means that its socket is full. If nobody listens there, nobody slices either.
func (s *slicer) send(n wire.SliceNote) bool {
	var buf [64]byte
	err := unix.Sendto(s.fd, wire.AppendSliceNote(buf[:0], &n), unix.MSG_DONTWAIT, &s.bell)
	taken := !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS)
	s.refused.Store(!taken)
	return taken
}

// letGo frees the vCPUs because serve has gone away: until another one comes, nobody would end a hold. Any goroutine may call it.
func (s *slicer) letGo() {
	_ = unix.Sendto(s.fd, wire.AppendSliceOrder(nil, &wire.SliceOrder{Mode: wire.SliceFree}), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: wire.WorkerRunSocket})
}

// kickGuests throws the vCPUs out of the guest. Those that idle go on idling.
func (w *Worker) kickGuests() {
	w.vcpuMu.Lock()
	defer w.vcpuMu.Unlock()
	self := uint32(unix.Gettid())
	for _, v := range w.vcpus {
		if v.cpu.TID() != self { // who is here is not there
			v.cpu.Kick()
		}
	}
}
