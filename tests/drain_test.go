package tests

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/local"
)

// A cell with ten running VMs is drained while their output is followed: plain, protected and spanning ones. Nothing stops and no record is lost,
// also when the server that leads, the target or the source is killed in the middle.

const drainPatience = 60 * time.Second

type draining struct {
	chaos
	readers map[string]*reader
}

// operate starts an operation on cell b.
func (d *draining) operate(kind api.OperationKind, back string) *api.Operation {
	d.t.Helper()
	return d.operateBy(kind, back, 1)
}

func (d *draining) operateBy(kind api.OperationKind, back string, parallel uint32) *api.Operation {
	d.t.Helper()
	var op *api.Operation
	d.until(faultPatience, kind.Word(), func(ctx context.Context) error {
		resp, err := d.client.API().StartOperation(ctx, &api.StartOperationRequest{Kind: kind, Cells: []string{"b"}, MaxParallel: parallel, Return: back})
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

// When the target dies, what is there already is lost or recovered as ever; all else runs on, and the drain ends once there is a target again.
func TestDrainAndTarget(t *testing.T) {
	d := newDraining(t, 1)
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
	d := newDraining(t, 1)
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
