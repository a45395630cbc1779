package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// Workers that misbehave are stopped by their jail, those of VMs with disks like all others; their server and other VMs never notice.
func TestMisbehavingWorkers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	c := &chaos{t: t, rng: rand.New(rand.NewPCG(1, 7)), cells: 1, lease: 20 * time.Second}
	c.start()
	disk := func(name string) []*api.Disk {
		return []*api.Disk{{Name: name, SizeBytes: uint64(ident.MiB)}}
	}
	spec := func(name string) *api.VMSpec {
		return &api.VMSpec{Name: name, Vcpus: 1, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 100", MemoryBytes: uint64(16 * ident.MiB),
			OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
	}
	run := func(s *api.VMSpec) {
		t.Helper()
		c.until(faultPatience, "VM "+s.GetName(), func(ctx context.Context) error { _, err := c.client.Run(ctx, s); return err })
	}
	bystander := spec("bystander")
	bystander.Disks = disk("of-another-vm")
	run(bystander)
	for crime, want := range map[string]string{
		"open": "operation not permitted", "open-disk": "operation not permitted", "socket": "operation not permitted", "signal": "operation not permitted",
		"foreign-disk": "no disk of this VM", "exec": "killed by its jail", "ptrace": "killed by its jail",
	} {
		for _, kind := range []string{"plain", "disk"} {
			vm := spec(kind + "-" + crime)
			vm.Options = map[string]string{"crime": crime}
			if kind == "disk" {
				vm.Disks = disk(vm.GetName())
			}
			run(vm)
			c.until(faultPatience, vm.GetName()+" is stopped", func(ctx context.Context) error {
				vms, err := c.vms(ctx)
				v := vms[vm.GetName()]
				switch {
				case err != nil:
					return err
				case v.GetState() != api.VMState_VM_STATE_FAILED:
					return fmt.Errorf("it is %s", v.GetState().Word())
				case !strings.Contains(v.GetReason(), want):
					t.Fatalf("%s: %s, want %q", vm.GetName(), v.GetReason(), want)
				}
				return nil
			})
		}
	}
	c.grows("after the crimes", "bystander")
	members, err := local.Find(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Kind == local.KindWorker && !jailed(t, m.PID) {
			t.Errorf("worker %d is not jailed", m.PID)
		}
	}
}

// jailed reads from /proc whether a process has a system call filter and no way to more rights.
func jailed(t *testing.T, pid int) bool {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(raw), "Seccomp:\t2\n") && strings.Contains(string(raw), "NoNewPrivs:\t1\n")
}
