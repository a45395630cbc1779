package worker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/wire"
)

// boot has all parts but the standbys boot again, in an epoch.
func (v *testVM) boot(epoch ident.Epoch, standbys ident.PartSet) {
	v.t.Helper()
	m := wire.WorkerMembers{Epoch: epoch, Booted: epoch, Fresh: true}
	var to []int
	for i, p := range v.parts {
		if !p.killed && !standbys.Has(ident.Part(i)) {
			m.Members = append(m.Members, v.member(i))
			to = append(to, i)
		}
	}
	for _, i := range to {
		v.sendTo(i, wire.ToWorker{Members: &m})
	}
}

// boots splits records into runs that each begin at 0, and checks that each is unbroken.
func boots(t *testing.T, records []string) (runs [][]string) {
	t.Helper()
	for _, r := range records {
		if r == "0" {
			runs = append(runs, nil)
		}
		if len(runs) == 0 {
			t.Fatalf("the first record is %s", r)
		}
		runs[len(runs)-1] = append(runs[len(runs)-1], r)
	}
	for _, run := range runs {
		checkUnbroken(t, run)
	}
	return runs
}

// A request that another part sent in a former boot, and that comes late, is none of this one: its number would make the vCPU's own look old.
func TestRequestsOfAFormerBootAreRefused(t *testing.T) {
	h, console, _ := testHome(t, 1, nil)
	if _, err := h.do(deviceRequest{op: opConsole, seq: 500, value: 'a', epoch: 3}); err != nil {
		t.Fatal(err)
	}
	h.endLife()
	h.beginLife(4)
	if _, err := h.do(deviceRequest{op: opConsole, seq: 501, value: 'b', epoch: 3}); !errors.Is(err, errEnded) {
		t.Errorf("late: %v, want errEnded", err)
	}
	if _, err := h.do(deviceRequest{op: opConsole, seq: 1, value: 'c', epoch: 4}); err != nil {
		t.Errorf("the new boot's first: %v", err)
	}
	if got := contents(t, console); got != "ac" {
		t.Errorf("console %q, want ac", got)
	}
}

// gate is a console that lets nothing through until it is opened.
type gate struct{ reached, open chan struct{} }

func (g gate) Write(b []byte) (int, error) {
	close(g.reached)
	<-g.open
	return len(b), nil
}

// An access that a device is busy with while the guest boots again does not count in the new boot.
func TestAnAccessThatOutlastsItsBootIsForgotten(t *testing.T) {
	h, _, _ := testHome(t, 1, nil)
	g := gate{make(chan struct{}), make(chan struct{})}
	h.board = machine.NewBoard(machine.BoardConfig{VCPUs: 1, Memory: 16 * ident.MiB, Console: g, Signal: func(uint64, uint32) {}})
	access := deviceRequest{op: opAccess, seq: 500, epoch: 3, access: machine.Access{Addr: 0x3f8, Data: 'x', Size: 1, Write: true, Port: true}}
	done := make(chan error, 1)
	go func() {
		_, err := h.do(access)
		done <- err
	}()
	<-g.reached
	h.endLife()
	h.beginLife(4)
	close(g.open)
	if err := <-done; !errors.Is(err, errEnded) {
		t.Errorf("the access: %v, want errEnded", err)
	}
	if _, err := h.do(deviceRequest{op: opClock, seq: 1, epoch: 4}); err != nil {
		t.Errorf("the new boot's first request: %v", err)
	}
}

func TestBootsAgainInPlace(t *testing.T) {
	for _, shape := range [][]int{{1}, {2}, {1, 1}, {1, 1, 1}} {
		v := startVM(t, "count", "300 1000", 16*ident.MiB, shape...)
		const resets = 5
		for n := range ident.Epoch(resets) {
			awaitRecords(t, v, 0, len(v.output())+30)
			v.boot(2+n, 0)
		}
		v.mustExit(time.Minute)
		runs := boots(t, v.output())
		if last := runs[len(runs)-1]; len(runs) < 2 || len(last) != 300 {
			t.Errorf("%d boots in the output, the last of %d records", len(runs), len(last))
		}
	}
}

// Memory must be Zero after every reset, whatever the parts held when it struck: lock checks that its counters begin at zero and end exact.
func TestResetUnderLoadForgetsAllMemory(t *testing.T) {
	v := startVM(t, "lock", "3000", 16*ident.MiB, 1, 1, 1)
	for n := range ident.Epoch(20) {
		<-time.After(time.Duration(n) * 3 * time.Millisecond)
		v.boot(2+n, 0)
	}
	v.mustExit(2 * time.Minute)
	if text := v.console(); strings.Count(text, "spinlock sum 9000, exact") != 1 {
		t.Errorf("console:\n%s", text)
	}
}

func TestCrashReportsItsBootAndMayBootAgain(t *testing.T) {
	image, err := bad.Open("triplefault")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	v := startVM(t, path, "", 16*ident.MiB, 1)
	for epoch := ident.Epoch(1); epoch <= 20; epoch++ {
		e := v.wait(time.Minute)
		if !e.Crash || e.State != "failed" || e.Host || !strings.Contains(e.Registers, "rip") || e.Booted != epoch && epoch > 1 {
			t.Fatalf("boot %d ended %+v", epoch, e)
		}
		v.boot(epoch+1, 0)
	}
	if n := strings.Count(v.console(), "about to fault"); n < 20 {
		t.Errorf("the console has the output of %d boots", n)
	}
}

// A failover goes back to the boot before only while nothing of the later one has left.
func TestFailoverAfterAReset(t *testing.T) {
	for _, early := range []bool{false, true} {
		const args = "0 1000"
		v := startVM(t, "count", args, 16*ident.MiB, 1, 1)
		standby := v.addStandby(1, "count", args, 16*ident.MiB, 2)
		v.awaitProtected(0, 1)
		awaitRecords(t, v, 0, len(v.output())+100)
		v.boot(2, ident.PartSet(0).Set(standby))
		if !early {
			for deadline := time.Now().Add(time.Minute); len(boots(t, v.output())) < 2; {
				if time.Now().After(deadline) {
					t.Fatalf("no output of the second boot\n%s", v.logs())
				}
				<-time.After(time.Millisecond)
			}
		}
		v.kill(0)
		seen := outputOf(v.parts[0])
		m := wire.WorkerMembers{Epoch: 3, Booted: 2, Home: standby, Restore: true, Image: standby, Members: []wire.WorkerMember{v.member(1), v.member(2)}}
		m.Members[0].VCPUs, m.Members[1].VCPUs = []ident.VCPU{1}, []ident.VCPU{0}
		v.sendTo(1, wire.ToWorker{Members: &m})
		v.sendTo(2, wire.ToWorker{Members: &m})
		awaitRecords(t, v, 2, len(seen)+100)
		after := outputOf(v.parts[2])
		if len(boots(t, after)) > 2 || strings.Join(after[:len(seen)], " ") != strings.Join(seen, " ") {
			t.Errorf("early %t: the outside has seen\n%v\nand then\n%v", early, seen, after)
		}
		t.Logf("early %t: %d boots", early, len(boots(t, after)))
	}
}

// A standby whose full copy is under way when the guest boots again must not keep a page of the former boot.
func TestResetWhileAStandbyIsCopied(t *testing.T) {
	const args = "600000" // seconds of work: the guest must not end before its copy is whole
	v := startVM(t, "lock", args, 64*ident.MiB, 1, 1)
	standby := v.addStandby(1, "lock", args, 64*ident.MiB, 2)
	for n := range ident.Epoch(6) {
		v.boot(2+n, ident.PartSet(0).Set(standby))
		<-time.After(2 * time.Millisecond)
	}
	v.awaitProtected(0, 1)
	v.kill(0)
	m := wire.WorkerMembers{Epoch: 20, Booted: 7, Home: standby, Restore: true, Image: standby, Members: []wire.WorkerMember{v.member(1), v.member(2)}}
	m.Members[0].VCPUs, m.Members[1].VCPUs = []ident.VCPU{1}, []ident.VCPU{0}
	v.sendTo(1, wire.ToWorker{Members: &m})
	v.sendTo(2, wire.ToWorker{Members: &m})
	v.mustExit(2 * time.Minute)
	if b, _ := os.ReadFile(filepath.Join(v.parts[2].dir, wire.WorkerConsoleFile)); !strings.Contains(string(b), "exact") {
		t.Errorf("console:\n%s", b)
	}
}
