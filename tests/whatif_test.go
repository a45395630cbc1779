package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// What `drill whatif --kill b` says is what happens when cell b is killed then: to VMs of every kind, and to the quorum.
func TestWhatIfComesTrue(t *testing.T) {
	needKVM(t)
	c := &chaos{t: t, slots: 16}
	c.start()
	for _, v := range []struct {
		name, protect string
		span          []string
		onLoss        api.OnLoss
		fate          string // that is meant to come up here
	}{
		{"inside", "none", []string{"b"}, api.OnLoss_ON_LOSS_STOP, "lost"},
		{"across", "none", []string{"a", "b"}, api.OnLoss_ON_LOSS_STOP, "lost"},
		{"touches", "none", []string{"a", "b"}, api.OnLoss_ON_LOSS_TOUCH, "continues"},
		{"elsewhere", "none", []string{"c"}, api.OnLoss_ON_LOSS_STOP, "untouched"},
		{"safe", "replica", []string{"b"}, api.OnLoss_ON_LOSS_STOP, "recovered"},
		{"wide", "replica", []string{"b", "c"}, api.OnLoss_ON_LOSS_STOP, "recovered"},
		{"replicated", "replica", []string{"a", "c"}, api.OnLoss_ON_LOSS_STOP, "unprotected"},
	} {
		payload := "idle" // one that waits touches no page that is gone
		spec := &api.VMSpec{Name: v.name, Vcpus: uint32(len(v.span)), Span: v.span, Payload: &api.VMSpec_Builtin{Builtin: payload},
			MemoryBytes: uint64(16 * ident.MiB), OnLoss: v.onLoss, Protect: v.protect}
		c.until(faultPatience, "creating VM "+v.name, func(ctx context.Context) error { _, err := c.client.Run(ctx, spec); return err })
	}
	c.until(safePatience, "all run, and the protected ones are safe", func(ctx context.Context) error {
		vms, err := c.vms(ctx)
		for name, v := range vms {
			if v.GetState() != api.VMState_VM_STATE_RUNNING || v.GetProtect() != "none" && v.GetProtection() != "safe" {
				return fmt.Errorf("VM %s is %s, %s", name, v.GetState().Word(), v.GetProtection())
			}
		}
		return err
	})

	forecast := c.whatIf("b")
	if !forecast.Quorum || forecast.VotersLeft != 2 || forecast.Measured != 0 {
		t.Errorf("the quorum: %+v", forecast)
	}
	fates := make(map[string]int)
	for _, v := range forecast.VMs {
		fates[v.Fate]++
	}
	for _, fate := range []string{"lost", "continues", "untouched", "recovered", "unprotected"} {
		if fates[fate] == 0 {
			t.Errorf("no VM is forecast as %s: %v", fate, fates)
		}
	}

	if _, _, err := local.KillCell(c.dir, "b"); err != nil {
		t.Fatal(err)
	}
	for _, f := range forecast.VMs {
		c.until(faultPatience, fmt.Sprintf("VM %s: %s: %s", f.VM, f.Fate, f.Reason), func(ctx context.Context) error {
			vms, err := c.vms(ctx)
			if err != nil {
				return err
			}
			return asForecast(vms[f.VM], f.Fate, f.Standby)
		})
	}
	st, err := c.client.API().Status(t.Context(), &api.StatusRequest{})
	if err != nil || !st.GetQuorum() || st.GetCellsLive() != 2 {
		t.Errorf("after the loss: %v, %v", st, err)
	}

	// The next one says how long it takes, from what was measured now: the last stage of a recovery may be noted a moment after the VM runs.
	c.until(faultPatience, "the next forecast", func(context.Context) error {
		if next := c.whatIf("c"); next.Measured == 0 || len(next.Stages) == 0 || next.ExpectedMs <= 0 || next.Quorum {
			return fmt.Errorf("%+v", next)
		}
		return nil
	})
}

func (c *chaos) whatIf(cell string) (f drill.Forecast) {
	c.t.Helper()
	cmd := exec.Command(program, "drill", "whatif", "--kill", cell, "-o", "json", "--addr", c.session.Cluster.Addrs())
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != api.ExitBlocked {
		c.t.Fatalf("drill whatif --kill %s, which costs something: %v\n%s", cell, err, out)
	}
	if err := json.Unmarshal(out, &f); err != nil {
		c.t.Fatal(err)
	}
	return f
}

// asForecast says how a VM differs from its forecast fate.
func asForecast(v *api.VM, fate, standby string) error {
	on := false
	for _, w := range v.GetWorkers() {
		on = on || w.GetServer() == standby && !w.GetStandby() && !w.GetLost()
	}
	running := v.GetState() == api.VMState_VM_STATE_RUNNING
	var ok bool
	switch fate {
	case "lost":
		ok = v.GetState() == api.VMState_VM_STATE_LOST
	case "recovered":
		ok = running && v.GetRecoveries() == 1 && on
	case "untouched", "unprotected":
		ok = running && v.GetRecoveries() == 0
	case "continues":
		ok = running && v.GetRecoveries() == 0 && len(v.GetWorkers()) > 0
	}
	if !ok {
		return fmt.Errorf("it is %s (%s), recovered %d times, on %v", v.GetState().Word(), v.GetReason(), v.GetRecoveries(), v.GetWorkers())
	}
	return nil
}
