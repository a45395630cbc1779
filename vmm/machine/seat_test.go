package machine

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/lapic"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
	"github.com/cellvisor/cellvisor/vmm/platform"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// testParts is a machine over parts of one vCPU each, that have a KVM VM each and their memory in common.
type testParts struct {
	t     *testing.T
	board *Board
	all   []*Interrupts
	seats []*Seat
	wake  []chan struct{}
	ended chan string
	done  chan struct{}
	sent  chan func() // interrupts on their way from part to part
	work  sync.WaitGroup
}

func newTestParts(t *testing.T, vcpus int, kernel []byte, out *screen) *testParts {
	t.Helper()
	const size = 64 * ident.MiB
	system := openKVM(t)
	memory, err := ram.New(size)
	if err != nil {
		t.Fatal(err)
	}
	p := &testParts{t: t, ended: make(chan string, 16), done: make(chan struct{}), sent: make(chan func(), 1<<10)}
	p.board = NewBoard(BoardConfig{
		VCPUs: vcpus, Memory: size, Backing: memory, Console: out,
		Signal: func(addr uint64, data uint32) { p.all[0].Signal(addr, data) },
		Event:  func(e platform.Event) { p.ended <- e.String() },
	})
	for i := range vcpus {
		p.addPart(system, memory, ident.VCPU(i), vcpus)
	}
	image, err := linux.Load(linux.Config{Memory: size, VCPUs: vcpus, Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteImage(image, memory, size); err != nil {
		t.Fatal(err)
	}
	if err := Enter(p.seats[0].cpu, image.Entry); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stop()
		memory.Close()
	})
	return p
}

func (p *testParts) addPart(system *kvm.System, memory *ram.RAM, id ident.VCPU, vcpus int) {
	p.t.Helper()
	vm, err := system.CreateVM()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { vm.Close() })
	if err := SetUpSpanned(vm, memory.Size(), memory.GuestAddr()); err != nil {
		p.t.Fatal(err)
	}
	cpu, err := NewSpannedVCPU(system, vm, id, vcpus, linux.ModelHost)
	if err != nil {
		p.t.Fatal(err)
	}
	wake := make(chan struct{}, 1)
	p.wake = append(p.wake, wake)
	x := NewInterrupts(InterruptsConfig{
		VCPUs: vcpus,
		Self:  ident.Part(id),
		Forward: func(part ident.Part, to ident.VCPU, m lapic.Message) {
			p.sent <- func() { p.all[part].Deliver(ident.Part(id), to, m) }
		},
		Passed: func() {},
		Renamed: func(id ident.VCPU, name NumberedName) {
			for _, other := range p.all {
				other.Rename(id, name)
			}
		},
		Wake: func(ident.VCPU) {
			cpu.Kick()
			select {
			case wake <- struct{}{}:
			default:
			}
		},
	}, []ident.VCPU{id})
	x.Place(p.placement(vcpus))
	p.all = append(p.all, x)
	seat, err := NewSeat(cpu, x)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cpu.SetTSCOffset(0); err != nil {
		p.t.Fatal(err)
	}
	p.seats = append(p.seats, seat)
}

// placement is that of vCPU i on part i.
func (p *testParts) placement(vcpus int) (at []ident.Part) {
	for i := range vcpus {
		at = append(at, ident.Part(i))
	}
	return at
}

func (p *testParts) start() {
	p.work.Go(func() {
		for {
			select {
			case deliver := <-p.sent:
				deliver()
			case <-p.done:
				return
			}
		}
	})
	for i, s := range p.seats {
		p.work.Go(func() {
			s.cpu.Bind()
			defer s.cpu.Unbind()
			if err := p.run(s, p.wake[i]); err != nil {
				p.ended <- fmt.Sprintf("vCPU %d: %v\n%s", s.id(), err, s.cpu.Dump())
			}
		})
	}
}

func (p *testParts) run(s *Seat, wake chan struct{}) error {
	for {
		select {
		case <-p.done:
			return nil
		default:
		}
		run, err := s.Enter()
		if err != nil {
			return err
		}
		if !run {
			select {
			case <-wake:
			case <-p.done:
			}
			continue
		}
		exit, known, err := s.Run()
		if err == nil && !known {
			if known, err = Dispatch(s.cpu, exit, p.board); err == nil && !known {
				err = fmt.Errorf("%s", exit)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (p *testParts) stop() {
	close(p.done)
	for _, s := range p.seats {
		s.cpu.Kick()
	}
	p.work.Wait()
	for i, s := range p.seats {
		p.all[i].Close()
		s.cpu.Close()
	}
	p.board.Close()
}

// TestTwoPartsAreOneMachine runs a kernel with two processors, each in a KVM VM of its own.
func TestTwoPartsAreOneMachine(t *testing.T) {
	out := &screen{}
	p := newTestParts(t, 2, linuxtest.SMP(100), out)
	p.start()
	select {
	case how := <-p.ended:
		if how != platform.PowerOff.String() || out.String() != linuxtest.SMPText {
			t.Fatalf("ended by %s, printed %q", how, out)
		}
	case <-time.After(60 * time.Second):
		for _, s := range p.seats {
			s.cpu.Kick()
		}
		t.Fatalf("the guest did not end; it printed %q", out)
	}
}
