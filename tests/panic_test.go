package tests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// The word panic_guest of drills crashes real guests: a payload, and a machine that was started from a kernel file. Each boots again in place; their
// neighbour and their server never notice. A cluster that does not allow drills refuses.
func TestGuestsPanic(t *testing.T) {
	dir, env := drillEnv(t)
	o := &operator{t: t, dir: dir, env: env}
	shape := local.Shape{Cells: 3, PerCell: 1, Slots: 8, Memory: 256 * ident.MiB, Lease: 20 * time.Second, Drills: true}
	s, err := local.Start(local.Options{Dir: dir, Exe: program, Shape: shape})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitLive(t.Context(), func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(kernel, tinyKernelFile(tinyKernel), 0o600); err != nil {
		t.Fatal(err)
	}
	o.cli("vm", "run", "box", "--kernel", kernel, "--memory", "64MiB", "--span", "b")
	o.cli("vm", "run", "tick", "--payload", "count", "--args=0 200", "--span", "b")
	o.cli("vm", "run", "neighbour", "--payload", "count", "--args=0 200", "--span", "b")

	client, err := api.Dial(t.Context(), s.Cluster.Addrs())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c := &chaos{t: t, dir: dir, client: client, session: s}
	console := func(ctx context.Context) error {
		if out := o.cli("vm", "console", "box"); strings.Contains(out, "D") || !strings.Contains(out, "Z") {
			return fmt.Errorf("the machine's console is %q", out)
		}
		return nil
	}
	c.until(faultPatience, "the machine has begun", console)
	cluster := drill.Connect(client, func(server string) string { return s.Cluster.Server(server).API })
	for round := uint64(1); round <= 2; round++ {
		for _, vm := range []string{"box", "tick"} {
			if err := cluster.CrashGuest(t.Context(), vm); err != nil {
				t.Fatalf("panic of %s: %v", vm, err)
			}
			c.until(faultPatience, fmt.Sprintf("%s boots again in place", vm), func(ctx context.Context) error {
				vms, err := c.vms(ctx)
				if v := vms[vm]; err == nil && (v.GetRestarts() != round || v.GetState() != api.VMState_VM_STATE_RUNNING || v.GetHome() != "b-1") {
					err = fmt.Errorf("it is %s (%s) on %s, after %d restarts", v.GetState().Word(), v.GetReason(), v.GetHome(), v.GetRestarts())
				}
				return err
			})
		}
		c.until(faultPatience, "the machine begins with fresh memory", func(context.Context) error {
			if out := o.cli("vm", "console", "box"); strings.Trim(strings.TrimSpace(out), "Z") != "" || uint64(strings.Count(out, "Z")) != round+1 {
				return fmt.Errorf("its console is %q", out)
			}
			return nil
		})
	}
	vms, err := c.vms(t.Context())
	if n := vms["neighbour"]; err != nil || n.GetState() != api.VMState_VM_STATE_RUNNING || n.GetRestarts() != 0 {
		t.Errorf("the neighbour: %v, %v", n, err)
	}
	if err := cluster.CrashGuest(t.Context(), "nobody"); status.Code(err) != codes.NotFound {
		t.Errorf("a panic of nobody: %v", err)
	}
}

// Nothing of what drills do is done to a cluster whose configuration does not allow drills.
func TestDrillsAreRefusedUnlessAllowed(t *testing.T) {
	needKVM(t)
	c := &chaos{t: t}
	c.start()
	c.until(faultPatience, "creating a VM", func(ctx context.Context) error {
		_, err := c.client.Run(ctx, &api.VMSpec{Name: "mine", Vcpus: 1, Span: []string{"b"}, Payload: &api.VMSpec_Builtin{Builtin: "idle"},
			MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"})
		return err
	})
	c.until(faultPatience, "it runs", func(ctx context.Context) error {
		vms, err := c.vms(ctx)
		if err == nil && vms["mine"].GetState() != api.VMState_VM_STATE_RUNNING {
			err = fmt.Errorf("it is %s", vms["mine"].GetState().Word())
		}
		return err
	})
	cluster := drill.Connect(c.client, func(server string) string { return c.session.Cluster.Server(server).API })
	if err := cluster.CrashGuest(t.Context(), "mine"); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "refuses drills") {
		t.Errorf("a panic: %v", err)
	}
	err := cluster.SetFaults(t.Context(), "b-1", []*api.Fault{{Kind: api.FaultKind_FAULT_KIND_DISK_FULL}}, time.Second, 1)
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a full disk: %v", err)
	}
	vms, err := c.vms(t.Context())
	if err != nil || vms["mine"].GetState() != api.VMState_VM_STATE_RUNNING || vms["mine"].GetRestarts() != 0 {
		t.Errorf("the VM: %v, %v", vms["mine"], err)
	}
}
