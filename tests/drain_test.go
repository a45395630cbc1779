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

// A cell with ten running VMs is drained while their output is followed: plain, protected and spanning ones. Nothing stops and no record is lost,
// also when the server that leads, the target or the source is killed in the middle.

const drainPatience = 60 * time.Second

type draining struct {
	chaos
	readers map[string]*reader
}

func newDraining(t *testing.T) *draining {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	d := &draining{chaos: chaos{
		t: t, rng: rand.New(rand.NewPCG(1, 3)), slots: 16,
		lease: 20 * time.Second, // a killed serve must be back before its lease lapses, however busy the machine is
	}, readers: make(map[string]*reader)}
	d.start()
	t.Cleanup(func() {
		for _, r := range d.readers {
			r.close()
		}
	})
	for i := range 10 {
		spec := &api.VMSpec{Name: fmt.Sprintf("plain-%d", i), Vcpus: 1, Span: []string{"b"}, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 200",
			MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
		switch {
		case i >= 8:
			spec.Name, spec.Vcpus, spec.Span = fmt.Sprintf("wide-%d", i), 2, []string{"a", "b"}
		case i >= 6:
			spec.Name, spec.Protect = fmt.Sprintf("safe-%d", i), "replica"
		}
		d.until(faultPatience, "creating VM "+spec.GetName(), func(ctx context.Context) error { _, err := d.client.Run(ctx, spec); return err })
		d.readers[spec.GetName()] = newReader(t.Context(), d.client, spec.GetName())
	}
	d.until(safePatience, "all run, and the protected ones are safe", func(ctx context.Context) error {
		vms, err := d.vms(ctx)
		for name, v := range vms {
			if v.GetState() != api.VMState_VM_STATE_RUNNING || v.GetProtect() == "replica" && v.GetProtection() != "safe" {
				return fmt.Errorf("VM %s is %s, %s", name, v.GetState().Word(), v.GetProtection())
			}
		}
		return err
	})
	return d
}

// operate starts an operation on cell b.
func (d *draining) operate(kind api.OperationKind, back string) *api.Operation {
	d.t.Helper()
	var op *api.Operation
	d.until(faultPatience, kind.Word(), func(ctx context.Context) error {
		resp, err := d.client.API().StartOperation(ctx, &api.StartOperationRequest{Kind: kind, Cells: []string{"b"}, MaxParallel: 1, Return: back})
		op = resp.GetOperation()
		return err
	})
	return op
}

// await waits until the operation is as is wanted, and returns it.
func (d *draining) await(id uint64, what string, wanted func(*api.Operation) bool) (op *api.Operation) {
	d.t.Helper()
	d.until(drainPatience, what, func(ctx context.Context) error {
		return d.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			resp, err := svc.GetOperation(ctx, &api.GetOperationRequest{Id: id})
			if op = resp.GetOperation(); err == nil && !wanted(op) {
				err = fmt.Errorf("it is %s, %d of %d steps, %s", op.GetState().Word(), stepsDone(op), len(op.GetSteps()), op.GetNote())
			}
			return err
		})
	})
	return op
}

func stepsDone(op *api.Operation) (n int) {
	for _, s := range op.GetSteps() {
		if s.GetState() == "done" {
			n++
		}
	}
	return n
}

func done(op *api.Operation) bool { return op.GetState() == api.OperationState_OPERATION_STATE_DONE }

// goOn demands that the output of each VM that matches goes on, in order.
func (d *draining) goOn(what string, match func(*api.VM) bool) {
	d.t.Helper()
	vms, err := d.vms(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	for name, r := range d.readers {
		if !match(vms[name]) {
			continue
		}
		if vms[name].GetState() != api.VMState_VM_STATE_RUNNING {
			d.t.Errorf("%s: VM %s is %s: %s", what, name, vms[name].GetState().Word(), vms[name].GetReason())
			continue
		}
		r.await(d.t, what+": output of "+name, r.count()+50)
	}
}

func all(*api.VM) bool { return true }

// killAll kills processes of the cluster that match.
func (d *draining) killAll(match func(local.Member) bool) {
	d.t.Helper()
	members, err := local.Find(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	members = slices.DeleteFunc(members, func(m local.Member) bool { return !match(m) })
	for _, m := range members {
		_ = syscall.Kill(m.PID, syscall.SIGKILL)
	}
	d.until(faultPatience, "killed processes end", func(context.Context) error {
		members = slices.DeleteFunc(members, func(m local.Member) bool { return !m.Alive() })
		if len(members) > 0 {
			return fmt.Errorf("%v are there", members)
		}
		return nil
	})
}

// revive starts a server again that was killed, as often as it takes, until all are live: its data directory may be locked for a moment longer.
func (d *draining) revive(server string) {
	d.t.Helper()
	d.until(healPatience, "server "+server+" is back", func(ctx context.Context) error {
		members, err := local.Find(d.dir)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(members, func(m local.Member) bool { return m.Server == server && m.Kind == local.KindServe }) {
			if _, err := local.StartServer(d.dir, server, program); err != nil {
				return err
			}
		}
		st, err := d.client.API().Status(ctx, &api.StatusRequest{})
		if err == nil && st.GetServersLive() != st.GetServersTotal() {
			err = fmt.Errorf("%d of %d servers are live", st.GetServersLive(), st.GetServersTotal())
		}
		if err != nil { // the client looks for another server
			_, _ = d.vms(ctx)
		}
		return err
	})
}

func (d *draining) safeToStop() *api.SafeToStopResponse {
	d.t.Helper()
	var r *api.SafeToStopResponse
	err := d.client.Call(d.t.Context(), func(ctx context.Context, svc api.CellvisorClient) (err error) {
		r, err = svc.SafeToStop(ctx, &api.SafeToStopRequest{Cells: []string{"b"}})
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func TestDrainAndLeader(t *testing.T) {
	d := newDraining(t)
	if r := d.safeToStop(); r.GetSafe() || len(r.GetDependents()) < 10 {
		t.Errorf("ten VMs depend on the cell, safe-to-stop says %v", r)
	}
	began := time.Now()
	op := d.operate(api.OperationKind_OPERATION_KIND_DRAIN, "")
	d.await(op.GetId(), "some of it is done", func(op *api.Operation) bool { return stepsDone(op) >= 2 })
	st, err := d.client.API().Status(t.Context(), &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("killing the serve process of %s, which leads", st.GetLeader())
	d.killAll(func(m local.Member) bool { return m.Server == st.GetLeader() && m.Kind == local.KindServe })
	d.revive(st.GetLeader())
	op = d.await(op.GetId(), "the drain goes on", done)
	var longest, sum time.Duration
	for _, s := range op.GetSteps() {
		down := time.Duration(s.GetDownMicros()) * time.Microsecond
		longest, sum = max(longest, down), sum+down
	}
	t.Logf("drained in %v, %d steps; a VM stood still for %v on average, %v at most", op.GetEndedAt().AsTime().Sub(op.GetStartedAt().AsTime()), len(op.GetSteps()),
		sum/time.Duration(len(op.GetSteps())), longest)
	d.goOn("after the drain", all)
	if r := d.safeToStop(); !r.GetSafe() {
		t.Fatalf("after the drain something depends on the cell: %v", r.GetDependents())
	}
	d.killAll(func(m local.Member) bool { return m.Server == "b-1" })
	d.until(faultPatience, "cell b is dead", func(ctx context.Context) error {
		st, err := d.client.API().Status(ctx, &api.StatusRequest{})
		if err == nil && st.GetCellsLive() != 2 {
			err = fmt.Errorf("%d cells live", st.GetCellsLive())
		}
		return err
	})
	d.goOn("after the death of the cell", all)
	for name, r := range d.readers {
		if gap, _ := r.longestGap(began); gap > time.Second {
			t.Logf("longest gap in the output of %s: %v", name, gap)
		}
	}
	vms, err := d.vms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range vms {
		if v.GetRecoveries() != 0 {
			t.Errorf("VM %s went back to a checkpoint", name)
		}
	}
	d.revive("b-1")
	op = d.operate(api.OperationKind_OPERATION_KIND_RESTORE, "original")
	d.await(op.GetId(), "the restore is done", done)
	vms, err = d.vms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range vms {
		if !slices.Contains(v.GetCells(), "b") {
			t.Errorf("VM %s did not come back: it is on %v", name, v.GetCells())
		}
	}
	d.goOn("after the restore", all)
}

// When the target dies, what is there already is lost or recovered as ever; all else runs on, and the drain ends once there is a target again.
func TestDrainAndTarget(t *testing.T) {
	d := newDraining(t)
	op := d.operate(api.OperationKind_OPERATION_KIND_DRAIN, "")
	d.await(op.GetId(), "some of it is done", func(op *api.Operation) bool { return stepsDone(op) >= 2 })
	d.killAll(func(m local.Member) bool { return m.Server == "c-1" })
	d.revive("c-1")
	d.await(op.GetId(), "the drain ends", done)
	d.goOn("after the death of the target", func(v *api.VM) bool { return !v.GetState().Ended() })
	d.onlyLost("c")
	if r := d.safeToStop(); !r.GetSafe() {
		t.Errorf("something depends on the drained cell: %v", r.GetDependents())
	}
}

// When the source dies, its drain is a recovery for what is protected or has left, and over.
func TestDrainAndSource(t *testing.T) {
	d := newDraining(t)
	op := d.operate(api.OperationKind_OPERATION_KIND_DRAIN, "")
	d.await(op.GetId(), "some of it is done", func(op *api.Operation) bool { return stepsDone(op) >= 2 })
	d.killAll(func(m local.Member) bool { return m.Server == "b-1" })
	d.await(op.GetId(), "the drain ends", done)
	d.goOn("after the death of the source", func(v *api.VM) bool { return !v.GetState().Ended() })
	d.onlyLost("b")
}

// onlyLost demands that no protected VM ended, and no other for another reason than the death of the cell: as a loss, or, if its server was back
// before anyone noticed, as a worker that is not there any more.
func (d *draining) onlyLost(cell string) {
	d.t.Helper()
	vms, err := d.vms(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	lost := 0
	for name, v := range vms {
		if v.GetState() == api.VMState_VM_STATE_RUNNING {
			continue
		}
		lost++
		if v.GetProtect() == "replica" || !strings.Contains(v.GetReason(), "cell "+cell+" lost") && !strings.Contains(v.GetReason(), "on server "+cell+"-1") &&
			!strings.Contains(v.GetReason(), "server "+cell+"-1 of cell") {
			d.t.Errorf("VM %s (%s) is %s: %s", name, v.GetProtect(), v.GetState().Word(), v.GetReason())
		}
	}
	d.t.Logf("%d of %d VMs were lost", lost, len(vms))
}
