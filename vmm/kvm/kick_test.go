package kvm_test

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

func newHost(t testing.TB, program string, vcpus int) *vmmtest.Host {
	t.Helper()
	s := vmmtest.RequireKVM(t)
	image, err := bad.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	return vmmtest.NewHost(t, s, image, boot.Config{Memory: 8 * ident.MiB, VCPUs: vcpus})
}

// runToPort runs until port I/O; any signal may interrupt Run, and means nothing here.
func runToPort(t testing.TB, v *kvm.VCPU) kvm.Exit {
	for {
		exit, err := v.Run()
		if err != nil || exit.Reason != kvm.IO && exit.Reason != kvm.Interrupted {
			t.Fatalf("got %v, %v", exit, err)
		}
		if exit.Reason == kvm.IO {
			return exit
		}
	}
}

// TestKickIsNeverLost answers thousands of requests made by kicks at all moments: before KVM_RUN, on the way into it, inside, on the way out.
// A lost kick would leave the spinning guest in KVM_RUN for ever, and the test at its deadline.
func TestKickIsNeverLost(t *testing.T) {
	h := newHost(t, "spin", 2)
	const kicks = 3000
	var asked, answered [2]atomic.Uint64
	answers := make(chan int, 2)
	var stop atomic.Bool
	finished := make(chan error, 2)
	for i, v := range h.VCPUs {
		go func() {
			v.Bind()
			defer v.Unbind()
			for {
				if n := asked[i].Load(); n != answered[i].Load() {
					answered[i].Store(n)
					answers <- i
				}
				if stop.Load() {
					finished <- nil
					return
				}
				if _, err := v.Run(); err != nil {
					finished <- err
					return
				}
			}
		}()
	}
	deadline := time.After(60 * time.Second)
	worst := time.Duration(0)
	for n := range kicks {
		i := n % 2
		start := time.Now()
		asked[i].Add(1)
		h.VCPUs[i].Kick()
		select {
		case <-answers:
			worst = max(worst, time.Since(start))
		case err := <-finished:
			t.Fatal(err)
		case <-deadline:
			t.Fatalf("kick %d of vCPU %d was lost", n, i)
		}
	}
	stop.Store(true)
	for _, v := range h.VCPUs {
		v.Kick()
	}
	for range h.VCPUs {
		if err := <-finished; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kicks, slowest answer %v, %d signals", kicks, worst, h.VCPUs[0].Signals()+h.VCPUs[1].Signals())
}

// TestKickBeforeRunAndAfterClose: a kick that comes early is kept, one that comes late is harmless.
func TestKickBeforeRunAndAfterClose(t *testing.T) {
	h := newHost(t, "spin", 1)
	v := h.VCPUs[0]
	v.Kick()
	exit, err := v.Run()
	if err != nil || exit.Reason != kvm.Interrupted {
		t.Fatalf("got %v, %v", exit, err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v.Kick()
}

// TestSignalBeforeRun: a signal that comes to a vCPU's thread before KVM_RUN, as a timer's may at any moment, is a kick all the same. Only one: the Run
// after it enters the guest, until the next.
func TestSignalBeforeRun(t *testing.T) {
	h := newHost(t, "spin", 1)
	v := h.VCPUs[0]
	over := time.AfterFunc(30*time.Second, func() { panic("a signal before KVM_RUN was lost") }) // the guest spins for ever
	defer over.Stop()
	v.Bind()
	defer v.Unbind()
	for range 100 {
		if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		if exit, err := v.Run(); err != nil || exit.Reason != kvm.Interrupted {
			t.Fatalf("got %v, %v", exit, err)
		}
	}
	began, kicked := time.Now(), make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(kicked); v.Kick() })
	for n := 0; ; n++ {
		if _, err := v.Run(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-kicked:
			t.Logf("left the guest after %v, the %dth time for the kick", time.Since(began), n+1)
			return
		default:
			if n > 10 { // a signal that was not fetched would end every Run
				t.Fatal("Run returns without being asked to")
			}
		}
	}
}

// TestRunAllocatesNothing: vCPU threads must not feed the garbage collector.
func TestRunAllocatesNothing(t *testing.T) {
	h := newHost(t, "ports", 1)
	v := h.VCPUs[0]
	v.Bind()
	defer v.Unbind()
	if n := testing.AllocsPerRun(200, func() {
		if exit := runToPort(t, v); !exit.Write {
			v.SetIO(1)
		}
	}); n != 0 {
		t.Errorf("Run allocates %v objects a call", n)
	}
}

// TestCompleteFinishesInput: after Complete the register holds the answer and the guest has gone no further.
func TestCompleteFinishesInput(t *testing.T) {
	h := newHost(t, "ports", 1)
	v := h.VCPUs[0]
	for {
		if runToPort(t, v).Write {
			continue
		}
		v.SetIO(0xabcd1234)
		state, err := v.State()
		if err != nil {
			t.Fatal(err)
		}
		if state.Regs.RAX != 0xabcd1234 {
			t.Fatalf("RAX is 0x%x after the input was answered", state.Regs.RAX)
		}
		return
	}
}

func BenchmarkExit(b *testing.B) {
	h := newHost(b, "ports", 1)
	v := h.VCPUs[0]
	v.Bind()
	defer v.Unbind()
	for b.Loop() {
		runToPort(b, v)
	}
}

func BenchmarkState(b *testing.B) {
	h := newHost(b, "ports", 1)
	for b.Loop() {
		if _, err := h.VCPUs[0].State(); err != nil {
			b.Fatal(err)
		}
	}
}
