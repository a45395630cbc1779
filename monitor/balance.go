package monitor

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// The leader's share in balancing: it looks whether the load is uneven, and says so or starts an operation, as the mode has it. What to move follows from
// the replicated state, which the root of the load tree keeps up to date.
const (
	stealEvery   = 500 * ident.Millisecond // the idle balancer's looks
	balanceEvery = 2 * ident.Second        // the periodic balancer's
	balanceLooks = 2                       // that must find something before anything is done
	suggestAgain = 5 * 60 * ident.Second
	settleMs     = 30_000 // a VM that was moved stays for so long
)

// BalanceBounds is how many moves an operation that nobody asked for has, and how many go on at once, in a cluster of so many servers.
func BalanceBounds(servers int) (moves, atOnce int) {
	return min(max(8, servers), cells.MaxBalanceMoves), min(max(2, servers/4), 16)
}

// BalanceWatch is what the leader has seen of the load. Look is called now and then; what it returns is to be proposed.
type BalanceWatch struct {
	Canary string // a planted bug, for the simulator

	stealAt, balanceAt ident.Micros
	stealSeen, seen    int    // looks in a row that found something
	suggested          string // what was last suggested, and when
	suggestedAt        ident.Micros
	stealQuiet, quiet  quiet
}

// quiet is a state in which nothing was found. Nothing is until it changes, or VMs have settled.
type quiet struct {
	applied  uint64
	settling int
}

// settling counts the VMs that were moved not long ago.
func settling(st *cells.State, unixMs int64) int {
	n := 0
	for i := range st.VMs {
		if st.VMs[i].MovedMs > unixMs-settleMs {
			n++
		}
	}
	return n
}

func (c *Core) tendBalance() {
	if cmd := c.balance.Look(c.now, c.unixMs(), c.rep.State()); cmd != nil {
		c.propose("balance", *cmd)
	}
}

// Look looks at the load as it is in the replicated state.
func (w *BalanceWatch) Look(now ident.Micros, unixMs int64, st *cells.State) *cells.Command {
	mode := st.BalanceMode()
	if mode == cells.BalanceOff || slices.ContainsFunc(st.Operations, func(o cells.Operation) bool { return o.State == cells.OpRunning }) {
		w.stealSeen, w.seen = 0, 0
		return nil
	}
	if mode == cells.BalanceAuto && now >= w.stealAt {
		w.stealAt = now + stealEvery
		if cmd, _ := w.look(unixMs, st, true, &w.stealSeen, &w.stealQuiet); cmd != nil {
			return cmd
		}
	}
	if now < w.balanceAt {
		return nil
	}
	w.balanceAt = now + balanceEvery
	cmd, op := w.look(unixMs, st, false, &w.seen, &w.quiet)
	if cmd == nil || mode == cells.BalanceAuto {
		return cmd
	}
	text := suggestion(op)
	if text == w.suggested && now < w.suggestedAt+suggestAgain {
		return nil
	}
	w.suggested, w.suggestedAt = text, now
	return &cells.Command{Report: &cells.Report{Kind: cells.EventBalanceSuggest, Subject: "cluster", Text: text,
		Fields: map[string]string{"score_before": fmt.Sprint(op.ScoreBefore), "score_after": fmt.Sprint(op.ScoreAfter), "moves": fmt.Sprint(len(op.Steps))}}}
}

// look plans, and returns what starts the plan if there was one in enough looks in a row.
func (w *BalanceWatch) look(unixMs int64, st *cells.State, idle bool, seen *int, q *quiet) (*cells.Command, *cells.Operation) {
	now := quiet{st.Applied, settling(st, unixMs)}
	if *q == now {
		return nil, nil
	}
	moves, atOnce := BalanceBounds(len(st.View.Live))
	cmd := &cells.StartOperation{Kind: cells.OpBalance, By: "balancer", Idle: idle, SettledSinceMs: unixMs - settleMs, MaxMoves: moves, MaxParallel: atOnce}
	if w.Canary == balancer.CanaryNoSettle {
		cmd.SettledSinceMs = 0
	}
	op, fault := PlanOperation(st, cmd)
	if fault != nil || len(op.Steps) == 0 {
		*seen, *q = 0, now
		return nil, nil
	}
	if *seen++; *seen < balanceLooks {
		return nil, nil
	}
	*seen = 0
	cmd.Reason = op.Steps[0].Reason
	return &cells.Command{StartOperation: cmd}, op
}

// suggestion tells people what could be done.
func suggestion(op *cells.Operation) string {
	s := op.Steps[0]
	what := "vm " + s.Name
	if s.Kind == cells.StepVCPU {
		what = fmt.Sprintf("vCPU %d of vm %s", s.VCPU, s.Name)
	}
	text := fmt.Sprintf("the load is uneven (%s): %s could go from %s to %s", s.Reason, what, s.FromName, s.ToName)
	if n := len(op.Steps) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return text + "; `cellvisor balance plan` lists all, `cellvisor balance apply` does it"
}

// evener answers the replicated state's question what makes the load more even.
type evener struct{ canary string }

// Next is the periodic balancer's next transfer.
func (e evener) Next(st *cells.State, leave []ident.VMID) (cells.Transfer, bool) {
	plan := balancer.RebalanceWith(serversByWork(st), runningVMs(st, leave), 1, e.canary)
	if len(plan) == 0 {
		return cells.Transfer{}, false
	}
	return transfer(plan[0]), true
}

func transfer(t balancer.Transfer) cells.Transfer {
	out := cells.Transfer{VM: t.VM, From: t.From, To: t.To, With: t.With, Reason: t.Reason}
	if t.Apart {
		out.VCPUs = t.VCPUs
	}
	return out
}

// Steal is the idle balancer's: the server with most slots free chooses first.
func (e evener) Steal(st *cells.State, leave []ident.VMID) (cells.Transfer, bool) {
	var spares []balancer.Spare
	for _, s := range serversByWork(st) {
		spares = append(spares, balancer.Spare{Server: s, FreeSlots: max(0, s.Slots-s.UsedVCPUs)})
	}
	var waiting []balancer.Waiting
	for _, vm := range runningVMs(st, leave) {
		waits := slices.ContainsFunc(vm.Parts, func(p balancer.RunningPart) bool {
			return slices.ContainsFunc(spares, func(s balancer.Spare) bool { return s.ID == p.Server && s.UsedVCPUs > s.Slots })
		})
		if waits {
			waiting = append(waiting, balancer.Waiting{Running: vm, Since: ident.Micros(st.VM(vm.VM).MovedMs)})
		}
	}
	if len(waiting) == 0 {
		return cells.Transfer{}, false
	}
	order := slices.Clone(spares)
	slices.SortStableFunc(order, func(a, b balancer.Spare) int { return cmp.Compare(b.FreeSlots, a.FreeSlots) })
	for _, s := range order {
		if t, ok := balancer.StealWith(s.ID, spares, waiting, e.canary); ok {
			return transfer(t), true
		}
	}
	return cells.Transfer{}, false
}

// Score tells how uneven the load is.
func (evener) Score(st *cells.State) uint64 { return balancer.Score(serversByWork(st)) }

// serversByWork counts the vCPUs that have work.
func serversByWork(st *cells.State) []balancer.Server {
	out := serversForPlacement(st)
	at := make(map[ident.ServerID]*balancer.Server, len(out))
	for i := range out {
		at[out[i].ID] = &out[i]
	}
	for i := range st.VMs {
		if vm := &st.VMs[i]; vm.State.Active() {
			for _, p := range vm.Parts {
				if s := at[p.Server]; s != nil && !p.Gone {
					s.UsedVCPUs -= min(p.Idle, len(p.VCPUs))
				}
			}
		}
	}
	return out
}

// runningVMs lists the VMs that run.
func runningVMs(st *cells.State, leave []ident.VMID) []balancer.Running {
	var out []balancer.Running
	for i := range st.VMs {
		vm := &st.VMs[i]
		if vm.State != cells.VMRunning {
			continue
		}
		members := vm.Members()
		r := balancer.Running{VM: vm.ID, Span: vm.Spec.Span, Whole: staysWhole(vm)}
		_, r.Settled = slices.BinarySearch(leave, vm.ID)
		for _, p := range members {
			r.Parts = append(r.Parts, balancer.RunningPart{Server: p.Server, VCPUs: len(p.VCPUs), Idle: p.Idle, Bytes: vm.Spec.MemoryBytes / ident.Bytes(len(members))})
		}
		out = append(out, r)
	}
	return out
}

// staysWhole tells whether a VM's vCPUs do not go one by one now: a Linux machine on one server has no other part, and that on several has its boot processor at
// home; a paused one's stand still, and under some policies they follow their pages.
func staysWhole(vm *cells.VM) bool {
	policy := vm.Spec.Options["locality"]
	return vm.Spec.Linux != nil || vm.Paused || vm.Saving.Token != "" || policy == "move" || policy == "auto"
}

// ServerWork is a server that takes VMs, and what runs there.
type ServerWork struct {
	Server      *cells.Server
	VCPUs, Busy int
	Parent      ident.ServerID // in the load tree; 0 at its root
}

// Work tells how the load is spread, by cell and server ID, how uneven it is, and how deep the load tree is.
func Work(st *cells.State) (servers []ServerWork, score uint64, depth int) {
	placed := serversForPlacement(st)
	busy := serversByWork(st)
	for _, p := range balancer.Tree(treeServers(st)) {
		i := slices.IndexFunc(busy, func(s balancer.Server) bool { return s.ID == p.Server })
		servers = append(servers, ServerWork{Server: st.Server(p.Server), VCPUs: placed[i].UsedVCPUs, Busy: busy[i].UsedVCPUs, Parent: p.Parent})
		depth = max(depth, p.Depth)
	}
	return servers, balancer.Score(busy), depth
}

// treeServers lists the servers of the load tree.
func treeServers(st *cells.State) []balancer.TreeServer {
	var out []balancer.TreeServer
	for _, m := range st.View.Live {
		if s := st.Server(m.Server); s != nil && s.Role == cells.RoleServer {
			out = append(out, balancer.TreeServer{ID: s.ID, Cell: s.Cell})
		}
	}
	return out
}

// LoadView is what load reports need of the replicated state.
func LoadView(st *cells.State) balancer.ReportView {
	v := balancer.ReportView{Epoch: st.View.Epoch, Servers: treeServers(st)}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if vm.State != cells.VMRunning {
			continue
		}
		for _, p := range vm.Members() {
			v.Parts = append(v.Parts, balancer.PartLoad{VM: vm.ID, Server: p.Server, VCPUs: len(p.VCPUs), Idle: p.Idle})
		}
	}
	return v
}
