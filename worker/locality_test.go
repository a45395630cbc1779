package worker

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// follow plays serve: it has every wish granted, for as long as the VM runs, and returns how many vCPUs went.
func (v *testVM) follow(at []int) (moved int) {
	v.t.Helper()
	deadline := time.After(4 * time.Minute)
	seq := uint64(0)
	for v.running() {
		select {
		case w := <-v.parts[0].wished:
			if at[w.VCPU] == int(w.To) {
				continue // granted meanwhile
			}
			seq++
			if v.hand(seq, w.VCPU, at[w.VCPU], int(w.To)).Moved {
				at[w.VCPU], moved = int(w.To), moved+1
			}
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			v.t.Fatalf("the VM has not ended\n%s", v.logs())
		}
	}
	return moved
}

// Memory stays one memory, in the order that x86 promises, while blocks are read ahead and vCPUs go to where their pages are.
func TestLitmusWhileVCPUsGoToTheirPages(t *testing.T) {
	v := startVMWith(t, map[string]string{wire.OptionLocality: "auto"}, "litmus", "2000", 32*ident.MiB, 1, 1, 1, 1)
	moved := v.follow([]int{0, 1, 2, 3})
	v.mustExit(3 * time.Minute)
	t.Logf("%d vCPUs went", moved)
}

// The same for values in a pipe, a table and records under a lock, which the guest checks.
func TestPhasesWhileVCPUsGoToTheirPages(t *testing.T) {
	for _, policy := range []string{"auto", "replicate", "rehome"} {
		v := startVMWith(t, map[string]string{wire.OptionLocality: policy}, "phases", "3 2", 32*ident.MiB, 1, 1, 1)
		moved := v.follow([]int{0, 1, 2})
		v.mustExit(3 * time.Minute)
		t.Logf("%s: %d vCPUs went", policy, moved)
	}
}

// Two vCPUs that pass pages to each other come together, and home says what they waited for.
func TestVCPUsThatShareComeTogether(t *testing.T) {
	v := startVMWith(t, map[string]string{wire.OptionLocality: "auto"}, "phases", "1000 1000", 32*ident.MiB, 1, 1)
	deadline := time.After(2 * time.Minute)
	for told := false; !told; {
		select {
		case s := <-v.parts[0].stats:
			told = s.Locality != nil && s.Locality.Policy == "auto" && len(s.Locality.Hot) > 0
		case <-deadline:
			t.Fatalf("no region is waited for\n%s", v.logs())
		}
	}
	for seq := uint64(1); ; seq++ {
		select {
		case w := <-v.parts[0].wished:
			from := 1 - int(w.To)
			if from != int(w.VCPU) {
				t.Fatalf("wish %+v", w)
			}
			if v.hand(seq, w.VCPU, from, int(w.To)).Moved {
				return
			}
		case <-deadline:
			t.Fatalf("nobody is to move\n%s", v.logs())
		}
	}
}
