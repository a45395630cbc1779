package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// One fault in the middle of each thing that an operator may do. Whatever the two are: the command ends, VMs that depend on nothing in the cell of the fault run on, a
// protected VM survives, and what is lost says so by the name of that cell. MIDOP_ROUNDS and MIDOP_SEED choose how many and which.

type midop struct {
	soak
	subject string
}

func TestFaultsInTheMiddle(t *testing.T) {
	rounds := envNumber(t, "MIDOP_ROUNDS", 0)
	if rounds == 0 {
		t.Skip("takes seconds a round: MIDOP_ROUNDS says how many")
	}
	needKVM(t)
	seed := envNumber(t, "MIDOP_SEED", uint64(time.Now().UnixNano()))
	t.Logf("replay: MIDOP_SEED=%d MIDOP_ROUNDS=%d go test -run TestFaultsInTheMiddle ./tests", seed, rounds)
	m := &midop{soak: soak{chaos: chaos{t: t, rng: rand.New(rand.NewPCG(seed, 23))}, ending: map[string]bool{}, done: map[string]int{}, asked: map[string]int{}}}
	m.startWith(local.Shape{Cells: 3, PerCell: 2, Slots: 4, Memory: 384 * ident.MiB, LogLevel: serverLogLevel()})
	for round := range rounds {
		m.round(int(round))
		if t.Failed() {
			return
		}
	}
}

// midopVMs are what runs when a round begins.
var midopVMs = []*api.VMSpec{
	{Name: "in-a", Vcpus: 1, Span: []string{"a"}, Protect: "none"},
	{Name: "in-b", Vcpus: 1, Span: []string{"b"}, Protect: "none"},
	{Name: "in-c", Vcpus: 1, Span: []string{"c"}, Protect: "none"},
	{Name: "safe", Vcpus: 1, Protect: "replica"},
	{Name: "plain", Vcpus: 1, Protect: "none"},
	{Name: "wide", Vcpus: 2, Span: []string{"a", "b"}, Protect: "none"},
	{Name: "kept", Vcpus: 1, Protect: "replica"},
	{Name: "both", Vcpus: 2, Span: []string{"b", "c"}, Protect: "replica"},
}

// midopSubjects are those of them to which operators do something.
var midopSubjects = []string{"plain", "wide", "kept", "both"}

// prepare has all of them run, as they are to be, on servers that are all there.
func (m *midop) prepare(what string) map[string]*api.VM {
	for _, s := range m.session.Cluster.Servers {
		m.heal(s.Name)
		m.command("server", "uncordon", s.Name)
	}
	var vms map[string]*api.VM
	m.until(faultPatience, what+": all run, and the protected ones are safe", func(ctx context.Context) (err error) {
		if vms, err = m.vms(ctx); err != nil {
			return err
		}
		for _, spec := range midopVMs {
			v := vms[spec.GetName()]
			switch {
			case v == nil:
				run := &api.VMSpec{Name: spec.GetName(), Vcpus: spec.GetVcpus(), Span: spec.GetSpan(), Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 100",
					MemoryBytes: uint64(16 * ident.MiB), OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: spec.GetProtect()}
				_, err = m.client.Run(ctx, run)
			case v.GetState().Ended() || v.GetRestarts() > 0 || v.GetProtect() != spec.GetProtect():
				if !v.GetState().Ended() {
					m.command("vm", "stop", v.GetName())
				}
				err = m.remove(ctx, v.GetName())
			case v.GetState() == api.VMState_VM_STATE_RUNNING && (spec.GetProtect() == "none" || v.GetProtection() == "safe"):
				continue
			}
			if err != nil {
				return err
			}
			return fmt.Errorf("VM %s is %s, %s", spec.GetName(), v.GetState().Word(), v.GetProtection())
		}
		return nil
	})
	return vms
}

// act chooses what is done to the subject, and tells whether it may end it or begin it anew.
func (m *midop) act() (what string, ends bool, do func()) {
	vm := m.subject
	server, cell := fmt.Sprintf("%c-%d", 'a'+m.rng.IntN(3), 1+m.rng.IntN(2)), string(rune('a'+m.rng.IntN(3)))
	vcpu, pause := fmt.Sprint(m.rng.IntN(2)), m.upTo(500*time.Millisecond)
	one := func(args ...string) (string, bool, func()) {
		return strings.Join(args, " "), false, func() { m.command(args...) }
	}
	switch m.rng.IntN(15) {
	case 0, 1:
		return one("vm", "migrate", vm, "--to", server)
	case 2, 3:
		return one("vm", "migrate", vm, "--vcpu", vcpu, "--to", server)
	case 4:
		return one("vm", "spread", vm)
	case 5:
		return one("vm", "gather", vm, "--to", cell)
	case 6:
		return one("vm", "protect", vm, "replica:2")
	case 7:
		return "vm protect none " + vm, true, func() { m.command("vm", "protect", vm, "none") }
	case 8:
		return "vm pause and resume " + vm, false, func() { m.command("vm", "pause", vm); m.pass(pause); m.command("vm", "resume", vm) }
	case 9:
		return "vm reset " + vm, true, func() { m.command("vm", "reset", vm) }
	case 10:
		return "vm save and restore " + vm, true, func() { m.saveAndRestore(vm) }
	case 11:
		return one("server", "drain", server, "--yes", "--deadline", "20s")
	case 12:
		return one("cell", "drain", cell, "--yes", "--deadline", "20s")
	case 13:
		return one("balance", "apply", "--yes")
	}
	return "vm stop " + vm, true, func() { m.command("vm", "stop", vm) }
}

func (m *midop) upTo(d time.Duration) time.Duration { return time.Duration(m.rng.Int64N(int64(d))) }

func (m *midop) round(n int) {
	what := fmt.Sprintf("round %d", n)
	before := m.prepare(what)
	m.subject = midopSubjects[m.rng.IntN(len(midopSubjects))]
	act, ends, do := m.act()
	server := fmt.Sprintf("%c-%d", 'a'+m.rng.IntN(3), 1+m.rng.IntN(2))
	kind, which, d, after := m.rng.IntN(2), m.rng.IntN(4), m.upTo(5*time.Second), m.upTo(300*time.Millisecond)
	if m.rng.IntN(3) == 0 {
		after /= 10
	}
	what += fmt.Sprintf(": %s, and after %v %s of %s %s", act, after.Round(time.Millisecond),
		[]string{"the end", "a stop"}[kind], []string{"a worker", "all workers", "the serve process", "everything"}[which], server)
	if kind == 1 {
		what += fmt.Sprintf(" for %v", d.Round(time.Millisecond))
	}
	m.t.Log(what)
	m.noteLogs()
	both(do, func() {
		m.pass(after)
		if kind == 0 {
			m.kill(server, which)
		} else {
			m.stop(server, which, d)
		}
	})
	m.heal(server)
	m.until(soakSettle, what+": operations end", m.operationsEnd)
	cell := server[:1]
	for _, spec := range midopVMs {
		m.judge(what, cell, before[spec.GetName()], ends && spec.GetName() == m.subject)
	}
	m.forget()
}

// judge demands of a VM what it was promised.
func (m *midop) judge(what, cell string, before *api.VM, mayEnd bool) {
	m.t.Helper()
	name := before.GetName()
	var v *api.VM
	m.until(faultPatience, what+": VM "+name+" is settled", func(ctx context.Context) error {
		vms, err := m.vms(ctx)
		if err != nil {
			return err
		}
		if v = vms[name]; v == nil {
			return fmt.Errorf("it is gone")
		}
		return settled(v)
	})
	lost := fmt.Sprintf("%s: VM %s, in %v before and %v after, %s, is %s: %s", what, name, before.GetCells(), v.GetCells(), before.GetProtection(), v.GetState().Word(), v.GetReason())
	depended := slices.Contains(before.GetCells(), cell) || slices.Contains(v.GetCells(), cell)
	switch {
	case mayEnd && v.GetState() != api.VMState_VM_STATE_LOST:
		return
	case v.GetState() == api.VMState_VM_STATE_RUNNING:
		m.grows(what, name)
	case m.starved(before) != "" || m.starved(v) != "":
		m.t.Log(lost, "; the host starved a server: ", m.starved(before), m.starved(v))
	case !depended || before.GetProtect() != "none" && !mayEnd:
		m.t.Error(lost)
	case v.GetReason() == "":
		m.t.Error(lost, " without a word why")
	}
}

// forget removes VMs that were restored under other names.
func (m *midop) forget() {
	for name := range m.all() {
		if strings.HasPrefix(name, "again-") {
			m.command("vm", "rm", "--force", name)
		}
	}
}
