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
		if m.Kind != local.KindWorker {
			continue
		}
		if !jailed(t, m.PID) {
			t.Errorf("worker %d is not jailed", m.PID)
		}
		if os.Getuid() == 0 && namespace(t, m.PID) == namespace(t, os.Getpid()) {
			t.Errorf("worker %d is in the PID namespace of others", m.PID)
		}
	}
}

func namespace(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// jailed reads from /proc whether a process has a system call filter, no way to more rights, and at most the permission to make its own threads real-time ones.
func jailed(t *testing.T, pid int) bool {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	has := func(line string) bool { return strings.Contains(string(raw), line+"\n") }
	const none, nice = "CapPrm:\t0000000000000000", "CapPrm:\t0000000000800000" // CAP_SYS_NICE
	return has("Seccomp:\t2") && has("NoNewPrivs:\t1") && has("CapEff:\t0000000000000000") && (has(none) || has(nice))
}
