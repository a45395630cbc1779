package worker

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// A vCPU that waits for a page may not leave KVM_RUN when it is kicked: some kernels wait uninterruptibly there. But once the page is mapped,
// whatever it holds, a kicked vCPU leaves before it executes another instruction. A part that goes back to a checkpoint relies on it.
func TestKickDuringTheWaitForAPageIsNotLost(t *testing.T) {
	system := vmmtest.RequireKVM(t)
	vmmtest.RequireUserfaultfd(t)
	image, err := payload.Open("hello")
	if err != nil {
		t.Fatal(err)
	}
	layout, err := boot.Load(image, boot.Config{Memory: 16 * ident.MiB, VCPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := ram.New(layout.Physical)
	if err != nil {
		t.Fatal(err)
	}
	if err := layout.Write(memory); err != nil {
		t.Fatal(err)
	}
	watch, err := uffd.Open(memory)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := system.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.SetMemory(0, 0, layout.Physical, memory.GuestAddr()); err != nil {
		t.Fatal(err)
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	exits := make(chan kvm.Exit, 1)
	go func() {
		cpu.Bind()
		if err := cpu.Start(kvm.Start(layout.Starts[0])); err != nil {
			t.Error(err)
		}
		exit, err := cpu.Run()
		if err != nil {
			t.Error(err)
		}
		exits <- exit
	}()
	faults := make([]uffd.Fault, 1)
	if _, err := watch.ReadFaults(faults); err != nil {
		t.Fatal(err)
	}
	cpu.Kick()
	served := make(chan int, 1)
	go func() { // one fault may be followed by others: KVM reads the guest's page tables
		n := 1
		for ; ; n++ {
			if err := watch.Map(faults[0].Page, 1, true); err != nil {
				t.Error(err)
			}
			if _, err := watch.ReadFaults(faults); err != nil {
				served <- n
				return
			}
		}
	}()
	select {
	case exit := <-exits:
		if exit.Reason != kvm.Interrupted {
			t.Fatalf("exit %v", exit)
		}
	case <-time.After(time.Minute):
		t.Fatal("a kicked vCPU did not come back when its page came")
	}
	watch.Interrupt()
	t.Logf("%d faults served after the kick", <-served)
	state, err := cpu.State()
	if err != nil {
		t.Fatal(err)
	}
	if rip := state.Regs.RIP; rip != layout.Starts[0].RIP {
		t.Fatalf("the guest ran on to 0x%x", rip)
	}
}
