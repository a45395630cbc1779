package worker

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// hand has a vCPU handed over, and returns how that ended.
func (v *testVM) hand(seq uint64, vcpu ident.VCPU, from, to int) wire.WorkerHanded {
	v.t.Helper()
	v.sendTo(0, wire.ToWorker{Hand: &wire.WorkerHand{Seq: seq, VCPU: vcpu, From: ident.Part(from), To: ident.Part(to)}})
	for deadline := time.After(time.Minute); ; {
		select {
		case e := <-v.parts[0].handed:
			if e.Seq == seq {
				return e
			}
		case <-deadline:
			v.t.Fatalf("hand-over %d has not ended\n%s", seq, v.logs())
		}
	}
}

// running tells whether the VM has not ended yet.
func (v *testVM) running() bool { return len(v.parts[0].ended) == 0 }

// A guest whose vCPUs increment shared counters under a lock stays exact while they go from part to part, home among them.
func TestVCPUsGoFromPartToPartAndNothingIsLost(t *testing.T) {
	v := startVM(t, "lock", "6000", 16*ident.MiB, 1, 1, 1)
	at := []int{0, 1, 2}
	var downs []ident.Micros
	for seq := uint64(1); v.running() && seq < 400; seq++ {
		id := int(seq*7) % 3
		to := (at[id] + 1 + int(seq)%2) % 3
		e := v.hand(seq, ident.VCPU(id), at[id], to)
		switch {
		case e.Moved:
			at[id] = to
			downs = append(downs, e.DownMicros)
		case v.running() && !strings.Contains(e.Why, "ended") && !strings.Contains(e.Why, "begun") && e.Why != "it took too long" && !strings.Contains(e.Why, "refuses"):
			t.Fatalf("hand-over %d: %s\n%s", seq, e.Why, v.logs())
		}
	}
	v.mustExit(2 * time.Minute)
	if !strings.Contains(v.console(), "exact") {
		t.Errorf("console:\n%s", v.console())
	}
	if len(downs) == 0 {
		t.Fatalf("nothing was handed over\n%s", v.logs())
	}
	slices.Sort(downs)
	t.Logf("%d hand-overs, median %d us, worst %d us", len(downs), downs[len(downs)/2], downs[len(downs)-1])
}

// A vCPU that idles goes on idling where it goes, for as long as it would have, and its output goes on without a gap.
func TestAnIdlingVCPUIsHandedOver(t *testing.T) {
	v := startVM(t, "count", "300 2000", 16*ident.MiB, 1, 1)
	at, moved := 0, 0
	for seq := uint64(1); v.running(); seq++ {
		if v.hand(seq, 0, at, 1-at).Moved {
			at, moved = 1-at, moved+1
		}
	}
	v.mustExit(time.Minute)
	checkCount(t, v, 300)
	if moved == 0 {
		t.Fatalf("nothing was handed over\n%s", v.logs())
	}
	t.Logf("%d hand-overs", moved)
}

// What does not fit is refused, and the vCPU stays where it is.
func TestAHandOverThatCannotBeIsRefused(t *testing.T) {
	v := startVM(t, "count", "100 5000", 16*ident.MiB, 1, 1)
	awaitRecords(t, v, 0, 5)
	for seq, c := range []struct {
		vcpu     ident.VCPU
		from, to int
	}{{0, 1, 0}, {7, 0, 1}, {0, 0, 0}} {
		if e := v.hand(uint64(seq+1), c.vcpu, c.from, c.to); e.Moved || e.Why == "" {
			t.Errorf("vCPU %d from %d to %d: %+v", c.vcpu, c.from, c.to, e)
		}
	}
	v.mustExit(time.Minute)
	checkCount(t, v, 100)
}

// Checkpoints are cut while vCPUs go to and fro; then a part dies. The VM goes on from its replica, with the placement that it is told, whatever it was at
// the cut, and the counters are exact.
func TestAProtectedVMSurvivesALossWhileVCPUsGoToAndFro(t *testing.T) {
	const args = "8000"
	v := startVM(t, "lock", args, 16*ident.MiB, 1, 2)
	standby := v.addStandby(1, "lock", args, 16*ident.MiB, 3)
	v.awaitProtected(0, 1)
	at := []int{0, 1, 1}
	moved := 0
	for seq := uint64(1); seq <= 25; seq++ {
		id := int(seq) % 3
		if v.hand(seq, ident.VCPU(id), at[id], 1-at[id]).Moved {
			at[id], moved = 1-at[id], moved+1
		}
	}
	if moved == 0 {
		t.Fatalf("nothing was handed over\n%s", v.logs())
	}
	v.sendTo(0, wire.ToWorker{Hand: &wire.WorkerHand{Seq: 100, VCPU: 0, From: ident.Part(at[0]), To: ident.Part(1 - at[0])}}) // under way, perhaps
	v.kill(0)
	m := wire.WorkerMembers{Epoch: 2, Home: standby, Restore: true, Image: standby, Members: []wire.WorkerMember{v.member(1), v.member(2)}}
	m.Members[0].VCPUs, m.Members[1].VCPUs = []ident.VCPU{0, 2}, []ident.VCPU{1}
	v.sendTo(1, wire.ToWorker{Members: &m})
	v.sendTo(2, wire.ToWorker{Members: &m})
	v.mustExit(2 * time.Minute)
	b, _ := os.ReadFile(filepath.Join(v.parts[2].dir, wire.WorkerConsoleFile))
	if !strings.Contains(string(b), "exact") {
		t.Errorf("console:\n%s", b)
	}
}
