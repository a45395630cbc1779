package tests

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// Drain rounds: a cell with ten running VMs, plain, protected and spanning ones, is drained while something is killed at a random moment. No VM
// that did not depend on what was killed ends or goes back, no record is lost, repeated or reordered; the drain ends as done; safe-to-stop says
// yes, and then the cell is killed and nobody notices; restore brings every VM back to where it was. DRAIN_ROUNDS, DRAIN_SEED and DRAIN_KINDS
// choose how many, which, and what is killed.

const (
	drainKinds  = "none,leader,target,target-serve,target-workers,source,source-serve"
	drainedCell = "b"
	drainedOne  = "b-1"
)

// drainRound is the state of one round.
type drainRound struct {
	*draining
	what   string
	before map[string]*api.VM
	hurt   map[string]bool // VMs that what was killed ended, or made go back
	victim string          // cell that was killed with all that ran there; "" for none
}

func TestDrainRounds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds a round")
	}
	needKVM(t)
	rounds, seed := envNumber(t, "DRAIN_ROUNDS", 1), envNumber(t, "DRAIN_SEED", uint64(time.Now().UnixNano()))
	kinds := drainKinds
	if s := os.Getenv("DRAIN_KINDS"); s != "" {
		kinds = s
	}
	t.Logf("replay: DRAIN_SEED=%d DRAIN_ROUNDS=%d DRAIN_KINDS=%s go test -run TestDrainRounds ./tests", seed, rounds, kinds)
	d := newDraining(t, seed)
	for round := range rounds {
		kind := strings.Split(kinds, ",")[d.rng.IntN(len(strings.Split(kinds, ",")))]
		r := &drainRound{draining: d, what: fmt.Sprintf("round %d, %s", round, kind), hurt: map[string]bool{}}
		r.run(kind)
		if t.Failed() {
			return
		}
	}
}

// drainVMs are what runs in the cell before each round.
func drainVMs() []*api.VMSpec {
	var out []*api.VMSpec
	for i := range 10 {
		spec := &api.VMSpec{Name: fmt.Sprintf("plain-%d", i), Vcpus: 1, Span: []string{drainedCell}, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 200",
			MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
		switch {
		case i >= 8:
			spec.Name, spec.Vcpus, spec.Span = fmt.Sprintf("wide-%d", i), 2, []string{"a", drainedCell}
		case i >= 6:
			spec.Name, spec.Protect = fmt.Sprintf("safe-%d", i), "replica"
		}
		out = append(out, spec)
	}
	return out
}

// populate makes all ten run in the cell, the protected ones safe, each with a reader. Those that a round ended, or left elsewhere, begin anew.
func (d *draining) populate() {
	d.t.Helper()
	for _, spec := range drainVMs() {
		d.until(faultPatience, "VM "+spec.GetName()+" runs where it should", func(ctx context.Context) error {
			vms, err := d.vms(ctx)
			v := vms[spec.GetName()]
			switch {
			case err != nil:
				return err
			case v == nil:
				if _, err := d.client.Run(ctx, spec); err != nil {
					return err
				}
				d.readers[spec.GetName()] = newReader(d.t.Context(), d.client, spec.GetName())
			case v.GetState().Ended():
				if old := d.readers[spec.GetName()]; old != nil {
					old.close()
				}
				return errAgain(d.remove(ctx, spec.GetName()))
			case v.GetState() == api.VMState_VM_STATE_RUNNING && !slices.Contains(v.GetCells(), drainedCell):
				return errAgain(d.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
					_, err := svc.StopVM(ctx, &api.StopVMRequest{Name: spec.GetName()})
					return err
				}))
			case v.GetState() == api.VMState_VM_STATE_RUNNING:
				return nil
			}
			return errAgain(nil)
		})
	}
	d.awaitAllSafe()
}

func errAgain(err error) error {
	if err == nil {
		err = fmt.Errorf("it begins anew")
	}
	return err
}

func (d *draining) awaitAllSafe() {
	d.t.Helper()
	d.until(safePatience, "all run, and the protected ones are safe", func(ctx context.Context) error {
		vms, err := d.vms(ctx)
		for name, v := range vms {
			if v.GetState() != api.VMState_VM_STATE_RUNNING || v.GetProtect() == "replica" && v.GetProtection() != "safe" {
				return fmt.Errorf("VM %s is %s, %s", name, v.GetState().Word(), v.GetProtection())
			}
		}
		return err
	})
}

func (d *draining) now() map[string]*api.VM {
	d.t.Helper()
	var out map[string]*api.VM
	d.until(faultPatience, "the VMs", func(ctx context.Context) (err error) { out, err = d.vms(ctx); return err })
	return out
}

func (r *drainRound) run(kind string) {
	r.populate()
	r.before = r.now()
	if r.safeToStop().GetSafe() {
		r.t.Fatalf("%s: ten VMs run in the cell, and safe-to-stop says yes", r.what)
	}
	began, moment := time.Now(), time.Duration(r.rng.IntN(900))*time.Millisecond
	parallel := uint32(1 + r.rng.IntN(4))
	op := r.operateBy(api.OperationKind_OPERATION_KIND_DRAIN, "", parallel)
	if kind == "target-workers" {
		r.await(op.GetId(), "a copy is being made", func(op *api.Operation) bool {
			return op.GetState() != api.OperationState_OPERATION_STATE_RUNNING || slices.ContainsFunc(op.GetSteps(), func(s *api.OperationStep) bool { return s.GetState() == "copying" })
		})
	} else {
		<-time.After(moment)
	}
	r.what += fmt.Sprintf(" after %v, %d at a time", moment, parallel)
	r.strike(kind, op.GetId())
	op = r.await(op.GetId(), r.what+": the drain ends", done)
	r.check("after the drain")
	if s := r.safeToStop(); !s.GetSafe() {
		r.t.Fatalf("%s: after the drain something depends on the cell: %v", r.what, s.GetDependents())
	}
	r.awaitAllSafeOf(r.hurt)
	r.before = mergeState(r.before, r.now())
	r.victim = ""
	r.killAll(ofServer(drainedOne))
	r.until(faultPatience, r.what+": the cell is dead", func(ctx context.Context) error { return r.cellsLive(ctx, 2) })
	r.check("after the death of the drained cell")
	r.revive(drainedOne)
	back := r.operateBy(api.OperationKind_OPERATION_KIND_RESTORE, "original", parallel)
	kind = []string{"none", "leader", "target-serve", "source-serve"}[r.rng.IntN(4)]
	<-time.After(time.Duration(r.rng.IntN(600)) * time.Millisecond)
	r.strike(kind, back.GetId())
	r.what += ", restore with " + kind
	r.await(back.GetId(), r.what+": the restore ends", done)
	r.check("after the restore")
	r.cameBack()
	var down, gap time.Duration
	for _, s := range op.GetSteps() {
		down = max(down, time.Duration(s.GetDownMicros())*time.Microsecond)
	}
	for name := range r.before {
		if now := r.readers[name]; !r.hurt[name] {
			longest, _ := now.longestGap(began)
			gap = max(gap, longest)
		}
	}
	r.t.Logf("%s: %d steps in %v; a VM stood still for %v at most; longest gap in an unhurt VM's output %v; %d VMs hurt %v", r.what, len(op.GetSteps()),
		op.GetEndedAt().AsTime().Sub(op.GetStartedAt().AsTime()).Round(time.Millisecond), down.Round(100*time.Microsecond), gap.Round(time.Millisecond), len(r.hurt),
		slices.Sorted(maps.Keys(r.hurt)))
}

// strike kills what the kind says and sees to it that it comes back.
func (r *drainRound) strike(kind string, op uint64) {
	serveOf := func(server string) {
		r.killAll(func(m local.Member) bool { return m.Server == server && m.Kind == local.KindServe })
		r.revive(server)
	}
	target := []string{"a-1", "c-1"}[r.rng.IntN(2)]
	switch kind {
	case "leader":
		var leader string
		r.until(faultPatience, "who leads", func(ctx context.Context) error {
			return r.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
				st, err := svc.Status(ctx, &api.StatusRequest{})
				if leader = st.GetLeader(); err == nil && leader == "" {
					err = fmt.Errorf("nobody leads")
				}
				return err
			})
		})
		r.what += " (" + leader + ")"
		serveOf(leader)
	case "target-serve":
		serveOf(target)
	case "source-serve":
		serveOf(drainedOne)
	case "target", "source":
		if kind == "source" {
			target = drainedOne
		}
		r.victim = target[:1]
		r.what += " (" + target + ")"
		r.killAll(ofServer(target))
		r.revive(target)
	case "target-workers":
		r.killCopies(op)
	}
}

// killCopies kills the workers that VMs are just being moved to.
func (r *drainRound) killCopies(id uint64) {
	op := r.await(id, "the drain", func(*api.Operation) bool { return true })
	vms := r.now()
	for _, s := range op.GetSteps() {
		if s.GetState() != "copying" {
			continue
		}
		for _, w := range vms[s.GetVm()].GetWorkers() {
			if w.GetServer() == s.GetTo() && w.GetPid() > 0 && len(w.GetVcpus()) == 0 {
				_ = local.Signal(syscall.SIGKILL, local.Process{PID: int(w.GetPid()), StartTicks: w.GetPidStartTicks()})
				r.what += fmt.Sprintf(" (copy of %s on %s)", s.GetVm(), s.GetTo())
				r.hurt["copy of "+s.GetVm()] = true
			}
		}
	}
}

// check demands that only VMs that what was killed may hurt are hurt, and that the output of all others goes on in order.
func (r *drainRound) check(when string) {
	r.t.Helper()
	r.until(faultPatience, r.what+": what became of the VMs is known", func(ctx context.Context) error {
		vms, err := r.vms(ctx)
		for _, v := range vms {
			if e := settled(v); e != nil {
				return e
			}
		}
		return err
	})
	now := r.now()
	for name, old := range r.before {
		v := now[name]
		ended := v.GetState().Ended()
		if !ended && v.GetRecoveries() == old.GetRecoveries() || r.hurt[name] {
			continue
		}
		r.hurt[name] = true
		if why := r.excuse(v, old); why == "" {
			r.t.Errorf("%s, %s: VM %s (%s) is %s after %d recoveries (%d before), on %v: %s", r.what, when, name, v.GetProtect(), v.GetState().Word(),
				v.GetRecoveries(), old.GetRecoveries(), v.GetCells(), v.GetReason())
		} else {
			r.t.Logf("%s: VM %s is %s: %s: %s", r.what, name, v.GetState().Word(), v.GetReason(), why)
		}
	}
	r.goOn(r.what+", "+when, func(v *api.VM) bool { return !v.GetState().Ended() })
}

// excuse says why the VM may have been hurt, "" if it may not.
func (r *drainRound) excuse(v, old *api.VM) string {
	byVictim := strings.Contains(v.GetReason(), "cell "+r.victim+" lost") || strings.Contains(v.GetReason(), "on server "+r.victim+"-1") ||
		strings.Contains(v.GetReason(), "server "+r.victim+"-1 of cell")
	switch {
	case !v.GetState().Ended() && r.victim != "" && v.GetProtect() == "replica":
		return "it went on from its replica"
	case !v.GetState().Ended() && r.victim == drainedCell && !slices.Contains(v.GetCells(), drainedCell):
		return "its copy was complete when what it moved from died"
	case v.GetState().Ended() && r.victim != "" && byVictim && v.GetProtect() != "replica":
		return "it depended on the cell, without protection"
	case v.GetState().Ended() && strings.Contains(r.what, "copy of "+v.GetName()+" on") && v.GetProtect() != "replica" && strings.Contains(v.GetReason(), "signal 9"):
		return "its copy had just taken over"
	}
	return ""
}

func (r *drainRound) awaitAllSafeOf(hurt map[string]bool) {
	r.t.Helper()
	r.until(safePatience, r.what+": protection is safe", func(ctx context.Context) error {
		vms, err := r.vms(ctx)
		for name, v := range vms {
			if !v.GetState().Ended() && v.GetProtect() == "replica" && v.GetProtection() != "safe" {
				return fmt.Errorf("VM %s is %s", name, v.GetProtection())
			}
		}
		return err
	})
}

// mergeState keeps where the VMs were, and takes over how often they had recovered.
func mergeState(before, now map[string]*api.VM) map[string]*api.VM {
	for name, v := range before {
		v.Recoveries = now[name].GetRecoveries()
	}
	return before
}

func (d *draining) cellsLive(ctx context.Context, want uint32) error {
	return d.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		st, err := svc.Status(ctx, &api.StatusRequest{})
		if err == nil && st.GetCellsLive() != want {
			err = fmt.Errorf("%d cells live", st.GetCellsLive())
		}
		return err
	})
}

// cameBack demands that every VM that was not hurt is where it was, vCPU by vCPU.
func (r *drainRound) cameBack() {
	r.t.Helper()
	now := r.now()
	for name, old := range r.before {
		if r.hurt[name] {
			continue
		}
		if was, is := placement(old), placement(now[name]); was != is {
			r.t.Errorf("%s: VM %s did not come back: it was on %s and is on %s", r.what, name, was, is)
		}
	}
}

// placement says which vCPUs run where.
func placement(v *api.VM) string {
	var parts []string
	for _, w := range v.GetWorkers() {
		if len(w.GetVcpus()) > 0 {
			parts = append(parts, fmt.Sprint(w.GetServer(), w.GetVcpus()))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// newDraining starts a cluster with the ten VMs.
func newDraining(t *testing.T, seed uint64) *draining {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	needKVM(t)
	d := &draining{chaos: chaos{
		t: t, rng: rand.New(rand.NewPCG(seed, 3)), slots: 16,
		lease: 20 * time.Second, // a killed serve must be back before its lease lapses, however busy the machine is
	}, readers: make(map[string]*reader)}
	d.start()
	t.Cleanup(func() {
		for _, r := range d.readers {
			r.close()
		}
	})
	d.populate()
	return d
}
