package vmmtest

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// Host is one VM in one process.
type Host struct {
	RAM   *ram.RAM
	VM    *kvm.VM
	VCPUs []*kvm.VCPU

	start   time.Time
	stop    atomic.Bool
	halt    chan struct{} // closed by Stop
	once    sync.Once
	wg      sync.WaitGroup
	mu      sync.Mutex // protects all below
	console bytes.Buffer
	records []uint32
	status  uint32
	exited  bool
	failure string
	done    chan struct{} // closed at the first exit or failure
	changed chan struct{} // has a token when something was added
}

// Result is how a guest ended.
type Result struct {
	Exited  bool   // by port 0xe0
	Status  uint32 // of that exit
	Console string
	Records []uint32
	Failure string // what else ended it, with a register dump
	Took    time.Duration
}

// NewHost loads a payload into a new VM, which is not running yet.
func NewHost(t testing.TB, s *kvm.System, image []byte, c boot.Config) *Host {
	t.Helper()
	layout, err := boot.Load(image, c)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := ram.New(layout.Physical)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{RAM: mem, VM: vm, halt: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}, 1)}
	t.Cleanup(h.Close)
	if err := layout.Write(mem); err != nil {
		t.Fatal(err)
	}
	if err := vm.SetMemory(0, 0, mem.Size(), mem.GuestAddr()); err != nil {
		t.Fatal(err)
	}
	for i := range layout.Starts {
		v, err := vm.CreateVCPU(ident.VCPU(i))
		if err != nil {
			t.Fatal(err)
		}
		h.VCPUs = append(h.VCPUs, v)
		if err := v.Start(kvm.Start(layout.Starts[i])); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// Run runs a payload to its end, at most for the deadline.
func Run(t testing.TB, image []byte, c boot.Config, deadline time.Duration) Result {
	t.Helper()
	h := NewHost(t, RequireKVM(t), image, c)
	h.Go()
	return h.Wait(t, deadline)
}

// Go starts all vCPUs.
func (h *Host) Go() {
	h.start = time.Now()
	for _, v := range h.VCPUs {
		h.wg.Add(1)
		go h.vcpu(v)
	}
}

// Wait waits for the guest's end and stops it. A guest that is still running at the deadline fails the test.
func (h *Host) Wait(t testing.TB, deadline time.Duration) Result {
	t.Helper()
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
		h.Stop()
		var dumps string
		for _, v := range h.VCPUs {
			dumps += v.Dump()
		}
		t.Fatalf("guest still running after %v; console:\n%s%s", deadline, h.console.String(), dumps)
	}
	took := time.Since(h.start)
	r := h.Stopped()
	r.Took = took
	return r
}

// Stopped stops the guest, wherever it is, and returns how far it came.
func (h *Host) Stopped() Result {
	h.Stop()
	return Result{Exited: h.exited, Status: h.status, Console: h.console.String(), Records: h.records, Failure: h.failure, Took: time.Since(h.start)}
}

// Stop makes all vCPUs leave the guest, and waits for that.
func (h *Host) Stop() {
	h.stop.Store(true)
	h.once.Do(func() { close(h.halt) })
	for _, v := range h.VCPUs {
		v.Kick()
	}
	h.wg.Wait()
}

// Records returns how many records the guest has emitted, and Changed is signalled as they come.
func (h *Host) Records() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.records)
}

// Ended tells whether the guest has ended by itself or failed.
func (h *Host) Ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// Changed gets a token when records, console or the end have changed.
func (h *Host) Changed() <-chan struct{} { return h.changed }

// Close stops the guest and frees everything.
func (h *Host) Close() {
	h.Stop()
	for _, v := range h.VCPUs {
		v.Close()
	}
	h.VCPUs = nil
	h.VM.Close()
	h.RAM.Close()
}

func (h *Host) vcpu(v *kvm.VCPU) {
	defer h.wg.Done()
	v.Bind()
	defer v.Unbind()
	for !h.stop.Load() {
		exit, err := v.Run()
		if err != nil {
			h.end(func() { h.failure = err.Error() + "\n" + v.Dump() })
			return
		}
		switch exit.Reason {
		case kvm.Interrupted:
		case kvm.IO:
			h.port(v, exit)
		default:
			h.end(func() { h.failure = v.Explain(exit) + "\n" + v.Dump() })
			return
		}
	}
}

// port serves one port access.
func (h *Host) port(v *kvm.VCPU, e kvm.Exit) {
	switch {
	case e.Port == 0x3f8 && e.Write:
		h.note(func() { h.console.Write(v.IOData()) }) // more than one byte for REP OUTSB
	case e.Port == 0xe0 && e.Write:
		h.end(func() { h.exited, h.status = true, uint32(e.Data) })
	case e.Port == 0xe4 && e.Write:
		h.idle(time.Duration(e.Data) * time.Microsecond)
	case e.Port == 0xe8 && e.Write:
		h.note(func() { h.records = append(h.records, uint32(e.Data)) })
	case e.Port == 0xec && !e.Write:
		v.SetIO(uint32(time.Since(h.start).Milliseconds()))
	default:
		h.end(func() { h.failure = "unknown port: " + v.Explain(e) + "\n" + v.Dump() })
	}
}

// idle waits for the guest's sake, not the test's: it ends early when the guest is stopped.
func (h *Host) idle(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.halt:
	case <-h.done:
	}
}

func (h *Host) note(change func()) {
	h.mu.Lock()
	change()
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *Host) end(change func()) {
	h.mu.Lock()
	select {
	case <-h.done:
	default:
		change()
		close(h.done)
	}
	h.mu.Unlock()
	h.stop.Store(true)
	select {
	case h.changed <- struct{}{}:
	default:
	}
}
