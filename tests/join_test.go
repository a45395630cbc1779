package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// A vCPU goes to a server that has no part of its VM, and at a random moment of that a server dies: the one that it leaves, the one that it goes to, or any.
// The operation ends; the VM is lost only if it had a part there and no replica elsewhere; else it ends as if nothing had been. JOIN_ROUNDS and JOIN_SEED choose how
// many and which.

const (
	joinRounds = 3 // by default
	joinMoment = 120 * time.Millisecond
)

func TestJoinAndLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "JOIN_ROUNDS", joinRounds), envNumber(t, "JOIN_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: JOIN_SEED=%d JOIN_ROUNDS=%d go test -run TestJoinAndLoss ./tests", seed, rounds)
	c := &joins{chaos{t: t, rng: rand.New(rand.NewPCG(seed, 7)), cells: 4, lease: 20 * time.Second}}
	c.start()
	for round := range rounds {
		c.round(int(round))
		if t.Failed() {
			return
		}
	}
}

type joins struct{ chaos }

func (c *joins) round(n int) {
	// One counts with the vCPU that goes, one has vCPUs that share locks wherever they are.
	spec := &api.VMSpec{Name: fmt.Sprint("vm-", n), Vcpus: 3, MemoryBytes: uint64(16 * ident.MiB), Protect: "none", Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "400 200", Span: []string{"a"}}
	vcpu, source := uint32(0), "a-1"
	if c.rng.IntN(2) == 0 {
		spec.Payload, spec.Args, spec.Span, vcpu = &api.VMSpec_Builtin{Builtin: "lock"}, "3000", []string{"a", "b"}, 1
	}
	if c.rng.IntN(2) == 0 {
		spec.Protect = "replica"
	}
	if _, err := c.client.Run(c.t.Context(), spec); err != nil {
		c.t.Fatal(err)
	}
	protected := spec.GetProtect() != "none"
	c.until(faultPatience, "the VM runs", func(ctx context.Context) error {
		vms, err := c.vms(ctx)
		v := vms[spec.GetName()]
		if err == nil && !v.GetState().Ended() && (v.GetState() != api.VMState_VM_STATE_RUNNING || protected && v.GetProtection() != "safe") {
			err = fmt.Errorf("it is %s, %s", v.GetState().Word(), v.GetProtection())
		}
		return err
	})
	target := c.stranger(spec.GetName())
	victim := []string{source, target, fmt.Sprintf("%c-1", 'a'+c.rng.IntN(4)), ""}[c.rng.IntN(4)]
	op := c.join(spec.GetName(), vcpu, target)
	moment := time.Duration(c.rng.Int64N(int64(joinMoment)))
	c.t.Logf("round %d: %s %s, protect %s: vCPU %d goes to %s, %q dies after %v", n, spec.GetName(), spec.GetBuiltin(), spec.GetProtect(), vcpu, target, victim, moment)
	<-time.After(moment)
	if victim != "" {
		c.kill(victim)
	}
	c.check(spec, op, victim, protected)
	if victim != "" {
		c.heal(victim)
	}
}

// stranger returns a server that has neither a part nor a replica of a VM.
func (c *joins) stranger(vm string) string {
	vms, err := c.vms(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, cell := range c.rng.Perm(4) {
		name := fmt.Sprintf("%c-1", 'a'+cell)
		if !slices.ContainsFunc(vms[vm].GetWorkers(), func(w *api.Worker) bool { return w.GetServer() == name }) {
			return name
		}
	}
	c.t.Fatalf("VM %s is everywhere: %v", vm, vms[vm].GetWorkers())
	return ""
}

// join starts the operation; 0: the VM has ended before.
func (c *joins) join(vm string, vcpu uint32, target string) (id uint64) {
	err := c.client.Call(c.t.Context(), func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.StartOperation(ctx, &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: vm, Vcpu: &vcpu, ToServer: target, MaxParallel: 1})
		id = resp.GetOperation().GetId()
		return err
	})
	if err != nil && !strings.Contains(err.Error(), "it is exited") {
		c.t.Fatal(err)
	}
	return id
}

// kill ends all processes of a server at once.
func (c *joins) kill(server string) {
	members, err := local.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	members = slices.DeleteFunc(members, func(m local.Member) bool { return m.Server != server })
	for _, m := range members {
		_ = local.Signal(syscall.SIGKILL, m.Process)
	}
	for _, m := range members {
		c.until(faultPatience, "a killed process ends", func(context.Context) error {
			if m.Alive() {
				return fmt.Errorf("process %d is there", m.PID)
			}
			return nil
		})
	}
}

// check waits until the operation and the VM have ended, and demands that the VM ended as it should.
func (c *joins) check(spec *api.VMSpec, id uint64, victim string, protected bool) {
	c.until(faultPatience, "the operation ends", func(context.Context) error {
		if id == 0 {
			return nil
		}
		return c.client.Call(c.t.Context(), func(ctx context.Context, svc api.CellvisorClient) error {
			resp, err := svc.ListOperations(ctx, &api.ListOperationsRequest{})
			for _, o := range resp.GetOperations() {
				if o.GetId() == id && o.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
					return fmt.Errorf("it is running: %s; %v", o.GetNote(), o.GetSteps())
				}
			}
			return err
		})
	})
	var vm *api.VM
	c.until(2*faultPatience, "the VM ends", func(ctx context.Context) error {
		vms, err := c.vms(ctx)
		if vm = vms[spec.GetName()]; err == nil && !vm.GetState().Ended() {
			err = fmt.Errorf("it is %s", vm.GetState().Word())
		}
		return err
	})
	switch {
	case vm.GetState() == api.VMState_VM_STATE_LOST && victim != "" && !protected:
		if cell := victim[:1]; !slices.Contains(vm.GetCells(), cell) || !strings.Contains(vm.GetReason(), "cell "+cell) {
			c.t.Errorf("VM %s was lost with %s though it lay in %v: %s", vm.GetName(), victim, vm.GetCells(), vm.GetReason())
		}
	case vm.GetState() != api.VMState_VM_STATE_EXITED || vm.GetExitStatus() != 0:
		c.t.Errorf("VM %s is %s with status %d: %s", vm.GetName(), vm.GetState().Word(), vm.GetExitStatus(), vm.GetReason())
	case spec.GetBuiltin() == "count":
		c.want(0, "^"+counted(400)+"$", "vm", "output", spec.GetName())
	}
}

// counted is what the payload count emits.
func counted(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d\n", i)
	}
	return b.String()
}
