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
)

// holdLag is how much later than it is told a part of a VM on several servers lets go of its slots: the threads that do so would otherwise be in the way of
// those that let the next gang take them, at the moment when that counts.
const holdLag = 150 * ident.Micros(1)

// slicer carries out serve's orders: it lets this part's vCPUs run, on the CPUs of their slots, or holds them, to the microsecond as far as the
// kernel's timers and scheduler allow. It has a thread of its own, ahead of all vCPUs.
//
//	free --order--> run <--order--> hold
//	     <--order, end of the last order, serve gone-- run, hold
type slicer struct {
	w    *Worker
	fd   int // datagram socket: orders come in, notes go out
	bell unix.SockaddrUnix
	idle atomic.Int32  // vCPUs that have left the gang
	mode atomic.Uint32 // wire.SliceMode; written by the thread

	slotSum  atomic.Int64 // microseconds that the gang was not held, until slotFrom
	slotFrom atomic.Int64 // when it was let go, 0 if it is held

	paused atomic.Bool // the VM is paused: no vCPU is in the gang

	order   wire.SliceOrder   // carried out; the thread's
	pending []wire.SliceOrder // for times to come, by time; the thread's
	remind  ident.Micros      // when to say again that there is work; the thread's
	owed    *wire.SliceNote   // when the vCPUs of the last turn began, which serve is told when it gives the next order; the thread's
	refused atomic.Bool       // serve's socket has not taken the last note
	in      [wire.SliceDatagramLimit]byte
}

// newSlicer makes the socket, in the working directory; orders may come at once.
func newSlicer(w *Worker) (*slicer, error) {
	s := &slicer{w: w, bell: unix.SockaddrUnix{Name: filepath.Join("..", wire.WorkersBell)}}
	if err := os.Remove(wire.WorkerRunSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket for slices: %w", err)
	}
	s.slotFrom.Store(int64(bootMicros()))
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
		for len(s.pending) > 0 && bootMicros() >= s.pending[0].At {
			o := s.pending[0]
			s.pending = s.pending[1:]
			s.carryOut(o)
		}
		if s.order.Mode != wire.SliceFree && bootMicros() >= s.order.Until {
			s.w.log.Warn().Msg("no word about slices any more: running without")
			s.pending = nil
			s.carryOut(wire.SliceOrder{})
		}
		s.remindServe()
		s.sleep()
	}
}

// remindServe says again that this part is held although it has work.
func (s *slicer) remindServe() {
	now := bootMicros()
	if s.order.Mode != wire.SliceHold || now < s.remind {
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

// sleep waits for an order, for the time of the pending one, or for the end of the present one.
func (s *slicer) sleep() {
	var timeout *unix.Timespec
	until := ident.Micros(0)
	if s.order.Mode != wire.SliceFree {
		until = s.order.Until
	}
	if len(s.pending) > 0 && (until == 0 || s.pending[0].At < until) {
		until = max(1, s.pending[0].At)
	}
	if s.order.Mode == wire.SliceHold && s.busy() > 0 {
		until = min(until, s.remind)
	}
	if until != 0 {
		ts := unix.NsecToTimespec(max(0, int64(until-bootMicros())*1000))
		timeout = &ts
	}
	_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, timeout, nil) // whatever it returns, look at everything
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
		s.settle()
		s.order.Until = max(s.order.Until, o.Until)
		for len(s.pending) > 0 && s.pending[len(s.pending)-1].At >= o.At {
			s.pending = s.pending[:len(s.pending)-1]
		}
		if o.Mode == wire.SliceHold && !s.w.alone() {
			o.At += holdLag
		}
		s.pending = append(s.pending, o)
	}
}

// carryOut makes the order the present one.
func (s *slicer) carryOut(o wire.SliceOrder) {
	before := s.order
	s.order = o
	s.mode.Store(uint32(o.Mode))
	s.countSlots(o.Mode == wire.SliceHold)
	note := wire.SliceNote{VM: s.w.spec.VM, Busy: s.busy()}
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
		s.owed = &note // later: at this moment it would only wake serve's thread, which has priority over the vCPUs that begin
	}
	if before.Mode == wire.SliceFree && !s.send(note) {
		s.remind = min(s.remind, bootMicros()+remindAfter)
	}
}

// settle sends the note that is owed.
func (s *slicer) settle() {
	if s.owed != nil {
		s.owed.Busy = s.busy()
		s.send(*s.owed)
		s.owed = nil
	}
}

// countSlots notes that the gang is held from now on, or not.
func (s *slicer) countSlots(held bool) {
	now := int64(bootMicros())
	switch from := s.slotFrom.Load(); {
	case held && from != 0:
		s.slotFrom.Store(0)
		s.slotSum.Add(now - from)
	case !held && from == 0:
		s.slotFrom.Store(now)
	}
}

// slotTime is for how long the gang was not held.
func (s *slicer) slotTime(now ident.Micros) ident.Micros {
	sum := ident.Micros(s.slotSum.Load())
	if from := ident.Micros(s.slotFrom.Load()); from != 0 {
		sum += max(0, now-from)
	}
	return sum
}

// pin binds the threads of the vCPUs that have work to one CPU each, the others to the same CPUs in turn; no CPUs: to none.
func (s *slicer) pin(cpus []uint16) {
	s.w.vcpuMu.Lock()
	defer s.w.vcpuMu.Unlock()
	next := 0
	for _, idle := range []bool{false, true} {
		for _, v := range s.w.vcpus {
			if v.idle.Load() != idle {
				continue
			}
			want := 0
			if len(cpus) > 0 {
				want = int(cpus[next%len(cpus)]) + 1
				next++
			}
			s.bind(v, want)
		}
	}
}

func (s *slicer) bind(v *vcpu, want int) {
	tid := int(v.cpu.TID())
	if v.pinned == want || tid == 0 {
		return
	}
	var set unix.CPUSet
	if want > 0 {
		set.Set(want - 1)
	} else if unix.SchedGetaffinity(os.Getpid(), &set) != nil { // the main thread is never bound
		return
	}
	if unix.SchedSetaffinity(tid, &set) == nil {
		v.pinned = want
	}
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
	for _, v := range w.vcpus {
		v.cpu.Kick()
	}
}
