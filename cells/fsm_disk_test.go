package cells

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// diskVM makes a state machine with three servers in three cells and one VM, home on server 1 and a standby on server 2, that has a disk.
func diskVM(t *testing.T) *FSM {
	t.Helper()
	f := &FSM{now: &Command{}, byID: map[RequestID]int{}}
	for i := range 3 {
		f.state.Servers = append(f.state.Servers, Server{ID: ident.ServerID(i + 1), Name: ident.ServerName(fmt.Sprintf("s-%d", i+1)), State: ServerLive})
	}
	f.state.VMs = []VM{{ID: 7, State: VMRunning, Spec: VMSpec{Name: "web", Disks: []DiskSpec{{Name: "db", Bytes: 4096}}}, Parts: []VMPart{
		{Part: 0, Server: 1, ServerName: "s-1"}, {Part: 1, Server: 2, ServerName: "s-2", Standby: true}}}}
	f.attachDisks(&f.state.VMs[0], 9)
	f.tendDisks()
	return f
}

// copies is "1:current 2:stale".
func copies(f *FSM) string {
	var out []string
	for _, c := range f.state.Disk("db").Copies {
		out = append(out, fmt.Sprintf("%d:%s", c.Server, c.State))
	}
	return strings.Join(out, " ")
}

func TestDiskCopiesFollowTheVM(t *testing.T) {
	f := diskVM(t)
	vm, d := &f.state.VMs[0], f.state.Disk("db")
	step := func(what, want string, change func()) {
		t.Helper()
		change()
		f.tendDisks()
		if got := copies(f); got != want {
			t.Fatalf("%s: copies are %q, want %q", what, got, want)
		}
	}
	step("a new VM", "1:current 2:copying", func() {})
	step("the standby holds a checkpoint", "1:current 2:current", func() { vm.Parts[1].Holds = true })
	step("home is lost", "1:stale 2:current", func() {
		vm.Parts = vm.Parts[1:]
		vm.Parts[0].Standby, vm.Home = false, 1
	})
	step("a new standby where home was", "1:copying 2:current", func() { vm.Parts = append(vm.Parts, VMPart{Part: 2, Server: 1, ServerName: "s-1", Standby: true}) })
	if d.CopyOn(1).Use <= d.CopyOn(2).Use {
		t.Errorf("uses %+v: the new one is not the latest", d.Copies)
	}
	if homes, fault := f.state.DiskHomes(&vm.Spec); fault != nil || len(homes) != 1 || homes[0] != 2 {
		t.Errorf("homes %v (%v), want server 2", homes, fault)
	}
	if fault := f.checkAttach(&VMSpec{Name: "other", Disks: []DiskSpec{{Name: "db"}}}); fault == nil || !strings.Contains(fault.Text, "in use by vm web") {
		t.Errorf("a second VM: %v", fault)
	}
	step("the VM ends", "1:stale 2:current", func() { vm.State = VMStopped })
	f.state.Servers[1].State = ServerDead
	if _, fault := f.state.DiskHomes(&vm.Spec); fault == nil || !strings.Contains(fault.Text, "current on s-2 (not live)") {
		t.Errorf("no live server has a current copy: %v", fault)
	}
	if fault := f.removeDisk(&RemoveDisk{Name: "db"}); fault != nil || len(f.state.Disks) != 0 {
		t.Errorf("removed: %v, %d left", fault, len(f.state.Disks))
	}
}

func TestDiskUsesAreConfirmed(t *testing.T) {
	f := diskVM(t)
	vm := &f.state.VMs[0]
	if !f.state.Unconfirmed(vm) {
		t.Fatal("home has not opened its copy yet")
	}
	f.confirmDisks(vm)
	if c := f.state.Disk("db").CopyOn(1); f.state.Unconfirmed(vm) || c.Confirmed != c.Use {
		t.Fatalf("copy %+v", c)
	}
}
