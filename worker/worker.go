package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/link/priority"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/wire"
)

// Worker is one VM's part on this server.
type Worker struct {
	spec       wire.WorkerSpec
	log        zerolog.Logger
	files      files
	taps       map[string]*heldTAP // opened before the jail, by interface
	usher      *usher              // nil: this worker connects by itself
	jailed     atomic.Bool         // and opens nothing by itself any more
	control    *control
	guard      *guard
	plane      *plane
	home       atomic.Pointer[home] // nil unless this is the home part
	vm         *kvm.VM
	vcpuMu     sync.Mutex
	vcpus      []*vcpu // that this part runs; protected by vcpuMu
	running    sync.WaitGroup
	slices     *slicer
	holder     holder
	hands      handovers
	wanderings wanderings
	drill      drillFaults
	scrubs     scrub
	cutter     cutter
	standby    atomic.Pointer[standby] // nil unless this part holds a replica
	replica    *replicas
	pauses     pauses
	saver      *saver
	linux      *linuxGuest // nil unless the guest is a Linux machine
	pager      *ram.Pager  // nil: this part may hold all of the guest's memory
	backing    *backing    // nil: nobody lends to it
	limits     limits
	hints      hints
	spins      spins

	checkpoints checkpoints
	stalled     atomic.Bool // at home: too much output is held back
	stallMu     sync.Mutex
	stallTimer  *time.Timer // protected by stallMu; at other members
	members     atomic.Pointer[wire.WorkerMembers]
	loading     chan struct{}   // closed when the image is written, or will not be; nil before; of the thread that carries out what serve says
	bootedAt    atomic.Int64    // ident.Micros of CLOCK_BOOTTIME, when the guest booted last
	ctx         context.Context // done when the VM has ended here
	cancel      context.CancelFunc
	stopped     chan struct{} // closed when serve has said stop
	stop        sync.Once

	mu    sync.Mutex
	ready *wire.WorkerReady // protected by mu; nil until set-up succeeded
	ended *wire.WorkerEnded // protected by mu; the first end counts

	protection *wire.WorkerProtected // protected by mu; the last word on it
	restored   *wire.WorkerRestored  // protected by mu
	taken      *replica              // that this part took over with; of the thread that carries out what serve says
	switched   *wire.WorkerSwitched  // protected by mu
	fromSaved  bool                  // the guest was loaded from a saved VM; of the thread that loads
	opened     bool                  // protected by mu; the disks, as home
}

// Run is the worker process: it holds the VM's part that dir/spec.json describes until serve says stop. The error is for the log and the
// exit status; serve has been told by then.
func Run(dir string, log zerolog.Logger) error {
	// A part of a VM has nothing to save: SIGTERM ends it as SIGKILL would, whatever the program does with it elsewhere.
	signal.Reset(unix.SIGTERM)
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	spec, err := readSpec(dir)
	if err != nil {
		return err
	}
	if spec.Lends {
		return runLender(dir, *spec, log)
	}
	w := &Worker{spec: *spec, files: files{dir: dir}, stopped: make(chan struct{})}
	w.log = log.With().Str("vm", spec.Name).Stringer("part", spec.Part).Logger()
	w.ctx, w.cancel = context.WithCancel(context.Background())
	defer w.cancel()
	w.guard = newGuard(w.kickAll, w.vcpuThreads, w.fenced)
	w.hands.w = w
	// Every vCPU and every page thread may sit in a system call at once, and one that returns must find a free P at once. A part has readers of as many
	// others as have vCPUs.
	runtime.GOMAXPROCS(runtime.NumCPU() + spec.VCPUs + 16)
	priority.CalmRuntime(100 * time.Millisecond) // what has to wait for a place after all does so for less than a lease
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if w.slices, err = newSlicer(w); err != nil {
		return err
	}
	go w.slices.run()
	if w.control, err = listenControl(w.log); err != nil {
		return err
	}
	w.control.greet, w.control.renew, w.control.handle = w.greetings, w.guard.renew, w.handleControl
	if w.saver, err = listenSave(w); err != nil {
		return err
	}
	w.control.alone = func() {
		w.slices.letGo()
		w.usher.serveGone()
	}
	if w.spec.Jail != nil {
		if w.usher, err = newUsher(w.log, w.control.send); err != nil {
			return err
		}
	}
	if err := w.setUp(); err != nil {
		w.fail(err)
	} else {
		w.announce()
	}
	if err := w.enterJail(); err != nil {
		return err // not a word to anyone: nothing may run here
	}
	go w.control.serve()
	go w.saver.serve()
	if w.plane != nil {
		go w.watchProgress()
	}
	if w.plane != nil && len(w.spec.Disks) > 0 && w.spec.ScrubMicros > 0 {
		go w.scrubAll(time.Duration(w.spec.ScrubMicros) * time.Microsecond)
	}
	w.watch()
	w.shutDown()
	return nil
}

// spans tells whether the VM has members on other servers.
func (w *Worker) spans() bool { return w.plane.fd != nil }

// setUp makes the machine: guest memory, KVM, vCPUs, page plane.
func (w *Worker) setUp() error {
	if err := w.holdAll(); err != nil {
		return err
	}
	physical, err := w.physicalSize()
	if err != nil {
		return err
	}
	memory, err := ram.New(physical)
	if err != nil {
		return err
	}
	if err := w.openPaging(memory); err != nil {
		return err
	}
	system, err := kvm.Open()
	if err != nil {
		return err
	}
	if w.vm, err = system.CreateVM(); err != nil {
		return err
	}
	w.cutter.dirty = newDirtyPages(memory.Pages())
	if w.isLinux() {
		err = w.setUpLinux(system, memory)
	} else {
		err = w.setUpPayload(physical, memory)
	}
	if err != nil {
		return err
	}
	if w.spec.Standby {
		s, err := newStandby(&w.files, memory, newStandbyDisks(w.openImage, w.spec.Disks, func(d wire.WorkerDisks) { w.control.send(wire.FromWorker{Disks: &d}) }))
		if err != nil {
			return err
		}
		w.standby.Store(s)
	}
	return w.setUpPlane(memory)
}

// setUpPayload makes the memory and the vCPUs of a payload guest.
func (w *Worker) setUpPayload(physical ident.Bytes, memory *ram.RAM) (err error) {
	if err := w.vm.SetMemory(0, 0, physical, memory.GuestAddr()); err != nil {
		return err
	}
	w.vcpus, err = newVCPUs(w.vm, w.spec.LocalVCPUs)
	w.cutter.log = dirtyLogs{w.vm.NewDirtyLog(0, 0, physical, memory.GuestAddr(), 0)}
	return err
}

// setUpPlane makes this part's end of the page protocol. A VM with one part has all its pages here from the start, so nothing watches them.
func (w *Worker) setUpPlane(memory *ram.RAM) error {
	secret, err := hex.DecodeString(w.spec.Secret)
	if err != nil {
		return fmt.Errorf("worker specification: secret: %w", err)
	}
	p := &plane{vm: w.spec.VM, guard: w.guard, ram: memory, fail: w.fail, lost: w.lostPage, hint: w.hint, pins: map[uint64]chan error{}, dirty: w.cutter.dirty, pager: w.pager}
	if w.isSpanned() {
		for _, v := range w.vcpus {
			p.stalled.add(v)
		}
	}
	w.plane = p
	if w.isSpanned() && stintOf(w.spec) != 0 {
		go w.watchSpins()
	}
	p.core = mem.New(w.memConfig())
	p.pages, err = link.ListenPages(link.PagesConfig{
		ClusterID: w.spec.ClusterID, VM: w.spec.VM, Self: w.spec.Part, Server: w.spec.Server, Secret: secret, Seal: w.spec.Seal,
		ListenHost: w.spec.ListenHost, Handler: handler{w}, Dial: w.usher.dialer(),
		Logf: func(format string, args ...any) { w.log.Debug().Msgf(format, args...) },
	})
	if err != nil {
		return err
	}
	p.outbox = p.pages.NewOutbox()
	p.timer = time.AfterFunc(time.Hour, p.tick)
	p.awake.watch(w.spec.IdleSleep)
	if !w.spec.Standby && (len(w.spec.LocalVCPUs) < w.spec.VCPUs || w.pager != nil || w.spec.Options["watch"] == "always") { // always: to measure a local fault
		if err := p.watch(); err != nil {
			return err
		}
	}
	w.replica, err = newReplicas(w, secret)
	return err
}

func (w *Worker) greetings() []wire.FromWorker {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []wire.FromWorker
	if w.ready != nil {
		ready := *w.ready
		if m := w.members.Load(); m != nil {
			ready.Epoch = m.Epoch
		}
		all = append(all, wire.FromWorker{Ready: &ready})
	}
	if w.protection != nil {
		all = append(all, wire.FromWorker{Protected: w.protection})
	}
	if w.restored != nil {
		all = append(all, wire.FromWorker{Restored: w.restored})
	}
	if e := w.hands.ended(); e != nil {
		all = append(all, wire.FromWorker{Handed: e})
	}
	if w.switched != nil {
		all = append(all, wire.FromWorker{Switched: w.switched})
	}
	if w.opened {
		all = append(all, wire.FromWorker{Disks: &wire.WorkerDisks{Opened: true}})
	}
	if said, ok := w.pauses.greeting(); ok {
		all = append(all, said)
	}
	if w.ended != nil {
		all = append(all, wire.FromWorker{Ended: w.ended})
	}
	return all
}

// handleControl does what serve says, other than to renew the lease. It is called for one message after the other.
func (w *Worker) handleControl(m wire.ToWorker) {
	switch {
	case m.Members != nil:
		w.takeMembers(*m.Members)
	case m.Protect != nil:
		if w.replica != nil {
			w.replica.set(*m.Protect)
		}
	case m.Switch != nil:
		if w.replica != nil {
			w.replica.askSwitch(m.Switch.Seq)
		}
	case m.Hand != nil:
		w.hands.begin(*m.Hand)
	case m.Pause != nil:
		w.setPause(*m.Pause)
	case m.Faults != nil:
		w.breakLinks(*m.Faults)
	case m.PageMap != nil:
		w.answerMap(*m.PageMap)
	case m.Peers != nil:
		w.setPeers(*m.Peers)
	case m.Typed != nil:
		w.typeLinux(*m.Typed)
	case m.Memory != nil:
		w.setMemory(*m.Memory)
	case m.Lenders != nil:
		w.setLenders(*m.Lenders)
	case m.Stop != nil:
		w.log.Info().Str("reason", m.Stop.Reason).Msg("told to stop")
		if h := w.home.Load(); h != nil && m.Stop.Final && !h.keepsDisks() {
			w.guard.stop()
			if err := h.hold(false); err != nil {
				w.log.Error().Err(err).Msg("output that was held back")
			}
		}
		w.stop.Do(func() { close(w.stopped) })
	}
}

// takeMembers enters an epoch; the first one starts the VM. It runs on the thread that carries out what serve says, so one at a time.
func (w *Worker) takeMembers(m wire.WorkerMembers) {
	before := w.members.Load()
	if w.plane == nil || before != nil && m.Epoch <= before.Epoch {
		return
	}
	w.log.Info().Uint64("epoch", uint64(m.Epoch)).Int("members", len(m.Members)).Msg("members")
	var err error
	switch {
	case m.Restore:
		err = w.restore(m)
	case before != nil && m.Booted > before.Booted:
		err = w.reboot(m)
	case before != nil:
		w.members.Store(&m)
		err = w.plane.setMembers(m)
	default:
		w.members.Store(&m)
		err = w.begin(m)
		go w.commitCrime()
	}
	if err != nil {
		w.fail(err)
		return
	}
	w.startObserving()
}

// begin starts the VM's part under its first members. Home opens its devices before any peer can ask for them.
func (w *Worker) begin(m wire.WorkerMembers) error {
	if m.Home == w.spec.Part {
		h, err := w.openHome()
		if err != nil {
			return err
		}
		w.home.Store(h)
	}
	if w.isSpanned() {
		w.linux.span.interrupts.Place(w.placement(m))
	}
	if w.spans() {
		if err := w.plane.setMembers(m); err != nil {
			return err
		}
	}
	if w.atHome() {
		w.startLoad()
	}
	w.cutter.setBooted(m.Booted)
	w.bootedAt.Store(int64(bootMicros()))
	if err := w.place(w.spec.LocalVCPUs); err != nil {
		return err
	}
	for _, v := range w.residents() {
		w.launch(v)
	}
	w.guard.start()
	return nil
}

// launch starts a vCPU's thread.
func (w *Worker) launch(v *vcpu) {
	w.running.Add(1)
	w.guard.join()
	v.over = make(chan struct{})
	go w.runVCPU(v, false)
}

func isNoContents(err error) bool  { return errors.Is(err, uffd.ErrNoContents) }
func isInterrupted(err error) bool { return errors.Is(err, uffd.ErrInterrupted) }
