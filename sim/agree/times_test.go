package agree

import (
	"fmt"
	"testing"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/sim/cluster"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// timesSeeds is how many clusters each claim about time is tried on.
const timesSeeds = 40

// settledCluster is a healthy cluster of three cells with two servers each.
func settledCluster(t *testing.T, seed uint64, oneHost bool) *cluster.World {
	t.Helper()
	w := cluster.New(kernel.New(seed, kernel.Reliable()), cluster.Config{Cells: []int{2, 2, 2}, OneHost: oneHost, DiskMax: 3 * ident.Millisecond})
	w.Start()
	if err := w.RunUntil(10*ident.Second, func() bool { return w.Settled() == nil }); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if err := w.Settled(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return w
}

func leader(w *cluster.World) *cluster.Server {
	return w.Server(w.Servers[0].Core.Status(w.Servers[0].Clock()).Leader)
}

// until runs the world until the view has n servers, and returns how long that took.
func until(t *testing.T, w *cluster.World, n int, limit ident.Micros) ident.Micros {
	t.Helper()
	begun := w.Now()
	gone := func() bool {
		for _, s := range w.Servers {
			if s.Running() && len(s.Core.Peek().View.Live) != n {
				return false
			}
		}
		return true
	}
	if err := w.RunUntil(begun+limit, gone); err != nil {
		t.Fatal(err)
	}
	if !gone() {
		t.Fatalf("no view of %d servers within %d us", n, limit)
	}
	return w.Now() - begun
}

// A new view follows the kill of a cell within a second, when proof can be had: also when the leader was in it.
func TestViewAfterKill(t *testing.T) {
	for seed := range uint64(timesSeeds) {
		w := settledCluster(t, seed, true)
		cell := ident.CellName(rune('a' + seed%3))
		if seed%2 == 0 {
			cell = leader(w).Cell()
		}
		for _, s := range w.Cell(cell) {
			crash(w, s, false)
		}
		epoch := w.Epoch()
		took := until(t, w, 4, ident.Second)
		if w.Epoch() != epoch+1 {
			t.Errorf("seed %d: the loss of cell %s took %d views", seed, cell, w.Epoch()-epoch)
		}
		if seed < 6 {
			t.Logf("seed %d: cell %s, %d ms", seed, cell, took/ident.Millisecond)
		}
	}
}

// Without proof, as after SIGSTOP or of another host, it follows within three seconds; whoever was stopped comes back as a new incarnation.
func TestViewAfterStop(t *testing.T) {
	for seed := range uint64(timesSeeds) {
		w := settledCluster(t, seed, seed%4 == 1)
		s := w.Servers[seed%6]
		if seed%2 == 0 {
			s = leader(w)
		}
		before := s.Core.Status(s.Clock()).Incarnation
		s.Pause()
		took := until(t, w, 5, 3*ident.Second)
		if seed < 6 {
			t.Logf("seed %d: %d ms", seed, took/ident.Millisecond)
		}
		s.Resume()
		if err := w.RunUntil(w.Now()+5*ident.Second, func() bool { return w.Settled() == nil }); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := w.Settled(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if after := s.Core.Status(s.Clock()).Incarnation; after <= before {
			t.Errorf("seed %d: server %d acts as incarnation %d again", seed, s.ID, after)
		}
	}
}

// A minority makes no views, and its servers lose their leases.
func TestMinority(t *testing.T) {
	w := settledCluster(t, 7, true)
	epoch := w.Epoch()
	for _, x := range w.Cell("a") {
		for _, y := range w.Servers {
			if y.Cell() != "a" {
				w.Cut(x.Node(), y.Node())
			}
		}
	}
	until := w.Now() + 3*ident.Second
	if err := w.Run(until); err != nil {
		t.Fatal(err)
	}
	for _, x := range w.Cell("a") {
		st := x.Core.Status(x.Clock())
		if st.Epoch != epoch || st.Quorum || x.Clock() < st.LeaseUntil {
			t.Errorf("server %d, cut off: epoch %d (was %d), quorum %v, lease for another %d us", x.ID, st.Epoch, epoch, st.Quorum, st.LeaseUntil-x.Clock())
		}
		if x.Core.Peek().Server(x.ID).State != cells.ServerLive {
			t.Errorf("server %d knows of its exclusion, though it is cut off", x.ID)
		}
	}
	if w.Epoch() <= epoch {
		t.Errorf("the majority made no new view")
	}
}

// One seed is one run.
func TestReplay(t *testing.T) {
	var prints [2]string
	for i := range prints {
		k := kernel.New(11, kernel.Reliable())
		k.Tracing = true
		w := build(k, "")
		if err := play(w); err != nil {
			t.Fatal(err)
		}
		prints[i] = fmt.Sprint(k.Now(), k.Stats(), w.Epoch(), w.Agreed(), len(k.Trace()))
	}
	if prints[0] != prints[1] {
		t.Errorf("two runs of one seed differ:\n%s\n%s", prints[0], prints[1])
	}
}

// A server that an operator removed while it was away is told so when it comes back; the others do not notice.
func TestRemovedServerIsTold(t *testing.T) {
	for seed := range uint64(timesSeeds) {
		w := settledCluster(t, seed, true)
		s := w.Servers[seed%6]
		crash(w, s, false)
		until(t, w, 5, 3*ident.Second)
		other := w.Servers[(seed+1)%6]
		removed, told := false, false
		w.OnAction = func(x *cluster.Server, a monitor.Action) bool {
			_, ok := a.(monitor.Forgotten)
			if ok && x != s {
				t.Errorf("seed %d: server %d was told that it was removed", seed, x.ID)
			}
			told = told || ok
			return ok
		}
		w.Command(other, cells.Command{RemoveServer: &cells.RemoveServer{Name: s.Name()}}, 3*ident.Second, func(r monitor.Response) {
			if r.Fault != nil {
				t.Errorf("seed %d: %v", seed, r.Fault)
			}
			removed = true
		})
		if err := w.RunUntil(w.Now()+3*ident.Second, func() bool { return removed }); err != nil {
			t.Fatal(err)
		}
		// The leader takes it out of the group in its own time.
		if err := w.Run(w.Now() + ident.Second); err != nil {
			t.Fatal(err)
		}
		epoch := w.Epoch()
		s.Restart()
		if err := w.RunUntil(w.Now()+5*ident.Second, func() bool { return told }); err != nil {
			t.Fatal(err)
		}
		st := other.Core.Status(other.Clock())
		if !told || w.Epoch() != epoch || len(st.Voters)+len(st.Learners) != 5 {
			t.Errorf("seed %d: told %v, epoch %d (was %d), %d voters and %d learners", seed, told, w.Epoch(), epoch, len(st.Voters), len(st.Learners))
		}
	}
}

// When the servers of a cell are dead, live ones of other cells take over their votes; nobody is pushed out when they come back.
func TestVotersFollowTheLiving(t *testing.T) {
	w := settledCluster(t, 3, true)
	voters := func() map[ident.CellName]int {
		count := make(map[ident.CellName]int)
		st := leader(w).Core.Status(0)
		for _, id := range st.Voters {
			count[w.Server(id).Cell()]++
		}
		return count
	}
	if got := fmt.Sprint(voters()); got != "map[a:2 b:2 c:1]" {
		t.Fatalf("voters at first: %s", got)
	}
	cell := w.Cell("a")
	if leader(w).Cell() == "a" {
		cell = w.Cell("b")
	}
	for _, s := range cell {
		crash(w, s, false)
	}
	until(t, w, 4, 3*ident.Second)
	dead := cell[0].Cell()
	if err := w.RunUntil(w.Now()+5*ident.Second, func() bool { return voters()[dead] == 1 }); err != nil {
		t.Fatal(err)
	}
	if got := voters(); got[dead] != 1 || got["c"] != 2 {
		t.Fatalf("voters without cell %s: %v", dead, got)
	}
	for _, s := range cell {
		s.Restart()
	}
	if err := w.RunUntil(w.Now()+5*ident.Second, func() bool { return w.Settled() == nil }); err != nil {
		t.Fatal(err)
	}
	if err := w.Run(w.Now() + 2*ident.Second); err != nil {
		t.Fatal(err)
	}
	if got := voters(); got[dead] != 1 || got["c"] != 2 {
		t.Fatalf("voters with cell %s back: %v", dead, got)
	}
}
