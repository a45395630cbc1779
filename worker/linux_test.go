package worker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
	"github.com/cellvisor/cellvisor/wire"
)

// startLinux starts a Linux machine of 64 MiB with one vCPU on each of n parts.
func startLinux(t *testing.T, kernel []byte, n int, options map[string]string) *testVM {
	t.Helper()
	vmmtest.RequireKVM(t)
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	v := &testVM{t: t}
	members := wire.WorkerMembers{Epoch: 1, Fresh: true}
	for i := range n {
		spec := testSpec(i, n, path, "", 64*ident.MiB)
		spec.LocalVCPUs, spec.Linux, spec.Options = []ident.VCPU{ident.VCPU(i)}, &wire.WorkerLinux{}, options
		p := startPart(t, spec)
		v.parts = append(v.parts, p)
		members.Members = append(members.Members, wire.WorkerMember{Part: ident.Part(i), Server: ident.ServerID(i + 1), Addr: p.ready.PageAddr, Level: p.ready.Level, VCPUs: spec.LocalVCPUs})
	}
	t.Cleanup(v.stop)
	v.send(wire.ToWorker{Lease: &wire.WorkerLease{UntilBootMicros: bootMicros() + 600*ident.Second}})
	v.send(wire.ToWorker{Members: &members})
	return v
}

// TestSMPOverTwoParts runs a kernel whose two processors are in different processes, with a memory and interrupts that travel.
func TestSMPOverTwoParts(t *testing.T) {
	for name, options := range map[string]map[string]string{"one host": nil, "as on two hosts": {"clock": "measured"}} {
		t.Run(name, func(t *testing.T) {
			v := startLinux(t, linuxtest.SMP(100), 2, options)
			v.mustExit(2 * time.Minute)
			if got := v.console(); got != linuxtest.SMPText {
				t.Errorf("printed %q, want %q\n%s", got, linuxtest.SMPText, v.logs())
			}
		})
	}
}
