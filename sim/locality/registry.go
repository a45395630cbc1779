package locality

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/locality"
)

// registry is the production one, with a VM that runs already. Server i+1 has part i, part 0 is home.
type registry struct {
	fsm      *cells.FSM
	index    uint64
	cordoned []bool
}

const theVM = ident.VMID(1)

func newRegistry(s Shape) *registry {
	r := &registry{fsm: cells.NewFSM("c", nil, cells.Hooks{}), cordoned: make([]bool, s.Parts)}
	st := r.fsm.State()
	st.View.Epoch = 1
	vm := cells.VM{ID: theVM, Spec: cells.VMSpec{Name: "m", VCPUs: s.VCPUs}, State: cells.VMRunning, Epoch: 1}
	for i := range s.Parts {
		id, name := ident.ServerID(i+1), ident.ServerName(fmt.Sprintf("s-%d", i+1))
		st.Servers = append(st.Servers, cells.Server{ID: id, Name: name, Cell: "c", Slots: s.Slots, Incarnation: 1, State: cells.ServerLive})
		st.View.Live = append(st.View.Live, cells.Member{Server: id, Incarnation: 1})
		p := cells.VMPart{Part: ident.Part(i), Server: id, ServerName: name, Cell: "c", Incarnation: 1, Ready: true}
		for v := i; v < s.VCPUs; v += s.Parts {
			p.VCPUs = append(p.VCPUs, ident.VCPU(v))
		}
		vm.Parts = append(vm.Parts, p)
	}
	st.VMs = append(st.VMs, vm)
	return r
}

func (r *registry) apply(c *cells.Command) (*cells.Fault, error) {
	c.Version = cells.CommandVersion
	b, err := cells.EncodeCommand(c)
	if err != nil {
		return nil, err
	}
	r.index++
	return r.fsm.Apply(r.index, 1, b).Fault, nil
}

// pull asks for what home wishes; nil if it is not granted.
func (r *registry) pull(w locality.Wish) (*cells.Hand, error) {
	fault, err := r.apply(&cells.Command{PullVCPU: &cells.PullVCPU{VM: theVM, Part: 0, Server: 1, Incarnation: 1, VCPU: w.VCPU, To: w.To}})
	if fault != nil || err != nil {
		return nil, err
	}
	return r.fsm.State().VM(theVM).Hand, nil
}

// handed tells that the hand-over has ended.
func (r *registry) handed(h cells.Hand) error {
	fault, err := r.apply(&cells.Command{VCPUHanded: &cells.VCPUHanded{VM: theVM, Part: 0, Server: 1, Incarnation: 1, Seq: h.Seq, Moved: true, DownMicros: moveTime}})
	if fault != nil {
		return fault
	}
	return err
}

func (r *registry) cordon(part ident.Part, on bool) error {
	r.cordoned[part] = on
	fault, err := r.apply(&cells.Command{Cordon: &cells.Cordon{Server: ident.ServerName(fmt.Sprintf("s-%d", part+1)), On: on}})
	if fault != nil {
		return fault
	}
	return err
}
