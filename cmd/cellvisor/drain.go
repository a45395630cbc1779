package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

// place is what can be drained: cells or servers, with the same verbs.
type place struct {
	noun string // "cell" or "server"
	one  string // for examples
}

func (p place) cells(names []string) []string {
	if p.noun == "cell" {
		return names
	}
	return nil
}

func (p place) servers(names []string) []string {
	if p.noun == "server" {
		return names
	}
	return nil
}

func (a *app) placeCmds(p place) []*cobra.Command {
	all := []*cobra.Command{a.cordonCmd(p, true), a.cordonCmd(p, false), a.drainCmd(p), a.restoreCmd(p), a.safeCmd(p)}
	for _, c := range all {
		if p.noun == "cell" {
			c.ValidArgsFunction = a.completeCells()
		} else {
			c.ValidArgsFunction = a.completeServers()
		}
	}
	return all
}

func (p place) example(lines ...string) string {
	for i, l := range lines {
		lines[i] = "  cellvisor " + p.noun + " " + l
	}
	return strings.Join(lines, "\n")
}

func (a *app) cordonCmd(p place, on bool) *cobra.Command {
	verb, short := "cordon", "Keep new VM parts off; what runs there stays"
	if !on {
		verb, short = "uncordon", "Let new VM parts on again"
	}
	return &cobra.Command{
		Use:     verb + " " + strings.ToUpper(p.noun) + "…",
		Short:   short,
		Example: p.example(verb + " " + p.one),
		Args:    args(1, -1, "the name of at least one "+p.noun),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
				_, err := svc.Cordon(ctx, &api.CordonRequest{Cells: p.cells(names), Servers: p.servers(names), On: on})
				return err
			})
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(names)
			}
			for _, n := range names {
				fmt.Fprintln(a.out, n)
			}
			return nil
		}),
	}
}

// opFlags are the flags of what starts an operation.
type opFlags struct {
	deadline   string
	onDeadline string
	parallel   uint32
	dryRun     bool
	detach     bool
	yes        bool
	reason     string
	giveBack   string
}

func (f *opFlags) common(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.dryRun, "dry-run", false, "only list the steps and what blocks")
	fl.BoolVar(&f.detach, "detach", false, "do not watch: print the operation's number (exit code 5)")
	fl.StringVar(&f.reason, "reason", "", "why, for whoever reads the events")
	fl.Uint32Var(&f.parallel, "max-parallel", 4, "VMs that move at a time")
}

func (a *app) drainCmd(p place) *cobra.Command {
	var f opFlags
	cmd := &cobra.Command{
		Use:   "drain " + strings.ToUpper(p.noun) + "…",
		Short: "Move everything away, with VMs running, so that it can be stopped",
		Long: `Cordons what is named, then moves all that runs or is kept there to other servers while the VMs run on: each stands still for some
milliseconds. It is done when nothing depends on what was drained any more.

The work goes on in the cluster under a number: Ctrl-C ends the watching only (exit code 5), "op watch" goes on with it, "op cancel" ends it. It is
refused, with the numbers, if the rest of the cluster has no room (exit code 3). A deadline that passes ends it with exit code 4; "restore" takes
back what a drain did.`,
		Example: p.example("drain "+p.one+" --dry-run", "drain "+p.one+" --yes --reason 'new power supply'", "drain "+p.one+" --deadline 1h --on-deadline fail --detach"),
		Args:    args(1, -1, "the name of at least one "+p.noun),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_DRAIN, Cells: p.cells(names), Servers: p.servers(names),
				OnDeadline: f.onDeadline, MaxParallel: f.parallel, Reason: f.reason}
			if f.deadline != "none" {
				d, err := time.ParseDuration(f.deadline)
				if err != nil || d < time.Second {
					return usagef("--deadline %q must be none or at least 1s, as in 90m", f.deadline)
				}
				req.DeadlineSeconds = uint32(d.Seconds())
			}
			if f.onDeadline != "fail" && f.onDeadline != "stop" {
				return usagef("--on-deadline %q must be fail or stop", f.onDeadline)
			}
			err := a.operate(ctx, c, req, f)
			if errors.As(err, new(*badEnd)) {
				fmt.Fprintf(a.err, "To take back what the drain did: cellvisor %s restore %s --return original\n", p.noun, strings.Join(names, " "))
			}
			return err
		}),
	}
	f.common(cmd)
	cmd.Flags().StringVar(&f.deadline, "deadline", "1h", "how long it may take, or none")
	cmd.Flags().StringVar(&f.onDeadline, "on-deadline", "fail", "what then: fail leaves all where it is by then, stop ends the VMs that are left")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("on-deadline", cobra.FixedCompletions([]string{"fail", "stop"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) restoreCmd(p place) *cobra.Command {
	var f opFlags
	cmd := &cobra.Command{
		Use:   "restore " + strings.ToUpper(p.noun) + "…",
		Short: "Let VMs on again after a drain, and bring some back",
		Long: `Uncordons what is named. With --return original, what the last drain moved away comes back from where it went, as far as it fits; with
--return balance, VMs of the busiest servers come.`,
		Example: p.example("restore "+p.one, "restore "+p.one+" --return original"),
		Args:    args(1, -1, "the name of at least one "+p.noun),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			if f.giveBack != "none" && f.giveBack != "original" && f.giveBack != "balance" {
				return usagef("--return %q must be none, original or balance", f.giveBack)
			}
			f.yes = true
			return a.operate(ctx, c, &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_RESTORE, Cells: p.cells(names),
				Servers: p.servers(names), Return: f.giveBack, MaxParallel: f.parallel, Reason: f.reason}, f)
		}),
	}
	f.common(cmd)
	cmd.Flags().StringVar(&f.giveBack, "return", "none", "what comes back: none, original or balance")
	_ = cmd.RegisterFlagCompletionFunc("return", cobra.FixedCompletions([]string{"none", "original", "balance"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) safeCmd(p place) *cobra.Command {
	return &cobra.Command{
		Use:     "safe-to-stop " + strings.ToUpper(p.noun) + "…",
		Short:   "Tell whether anything would notice if it were switched off now",
		Long:    "Says yes, or names what still depends on it (exit code 3): parts and replicas of VMs, and the quorum.",
		Example: p.example("safe-to-stop "+p.one) + " && ssh " + p.one + "-1 poweroff",
		Args:    args(1, -1, "the name of at least one "+p.noun),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			var r *api.SafeToStopResponse
			err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) (err error) {
				r, err = svc.SafeToStop(ctx, &api.SafeToStopRequest{Cells: p.cells(names), Servers: p.servers(names)})
				return err
			})
			if err != nil {
				return err
			}
			if a.format == "json" {
				err = a.json(view.OfSafety(r))
			} else {
				fmt.Fprintln(a.out, yesNo(r.GetSafe()))
				for _, d := range r.GetDependents() {
					fmt.Fprintln(a.out, "  "+d)
				}
			}
			if err == nil && !r.GetSafe() {
				err = exitStatus(api.ExitBlocked)
			}
			return err
		}),
	}
}

func (a *app) vmMigrateCmd() *cobra.Command {
	var f opFlags
	var to, from string
	var vcpu int
	cmd := &cobra.Command{
		Use:   "migrate NAME --to SERVER|CELL",
		Short: "Move a running VM, the part of it on one server or cell, or one vCPU, elsewhere",
		Long: `Moves a running VM to another server while it runs: a copy is made there, follows it checkpoint by checkpoint, and takes over at one at which
nothing is missing. The VM stands still for some milliseconds, which the result shows. Should the target fail meanwhile, the VM runs on where it is.

Of a VM that spans several servers, --from says which part moves. With --vcpu only that vCPU goes. To a server that holds a part of the VM too
nothing is copied: it stands still for a fraction of a millisecond, its pages follow as it touches them. On any other server a part is made for it, as for a
move: the VM stands still for some milliseconds, has its home there and depends on that server, too. A vCPU that is the only one of its part takes the part
along.`,
		Example:           "  cellvisor vm migrate web --to b\n  cellvisor vm migrate big --from a-1 --to c-2\n  cellvisor vm migrate big --vcpu 3 --to c-2",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			if to == "" {
				return usagef("--to is missing: name the server or cell that the VM is to go to")
			}
			req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: words[0], MaxParallel: 1, Reason: f.reason}
			cells, err := listCells(ctx, c)
			if err != nil {
				return err
			}
			for _, cell := range cells {
				if cell.GetName() == to {
					req.ToCell = to
				}
				if cell.GetName() == from {
					req.Cells = []string{from}
				}
			}
			if req.ToCell == "" {
				req.ToServer = to
			}
			if vcpu >= 0 {
				if from != "" {
					return usagef("--vcpu says what moves: leave --from out")
				}
				id := uint32(vcpu)
				req.Vcpu = &id
			}
			if from != "" && req.Cells == nil {
				req.Servers = []string{from}
			}
			f.yes = true
			return a.operate(ctx, c, req, f)
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "server or cell that it goes to")
	cmd.Flags().StringVar(&from, "from", "", "server or cell whose part of the VM moves (default: all that is not there yet)")
	cmd.Flags().IntVar(&vcpu, "vcpu", -1, "move this vCPU only, counted from 0")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only list the steps and what blocks")
	cmd.Flags().BoolVar(&f.detach, "detach", false, "do not watch: print the operation's number (exit code 5)")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for whoever reads the events")
	return cmd
}

// operate starts an operation and follows it.
func (a *app) operate(ctx context.Context, c *api.Client, req *api.StartOperationRequest, f opFlags) error {
	req.By = operator()
	start := func(dry bool) (op *api.Operation, err error) {
		req.DryRun = dry
		err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			resp, err := svc.StartOperation(ctx, req)
			op = resp.GetOperation()
			return err
		})
		return op, err
	}
	if f.dryRun {
		return a.dryRun(ctx, c, start)
	}
	if !f.yes && isTerminal(a.out) {
		if err := a.ask(start); err != nil {
			return err
		}
	}
	op, err := start(false)
	if err != nil {
		return err
	}
	if f.detach {
		if err := a.printOperation(op); err != nil {
			return err
		}
		return exitStatus(api.ExitDetached)
	}
	return a.watchOperation(ctx, c, op)
}

// dryRun lists what would be done, with the room that there is for it. What blocks is the error, after the steps that nothing blocks.
func (a *app) dryRun(ctx context.Context, c *api.Client, start func(dry bool) (*api.Operation, error)) error {
	op, blocked := start(true)
	if blocked != nil {
		if op = api.PlanOf(blocked); op == nil {
			return blocked
		}
	}
	if a.format != "table" && a.format != "wide" {
		if err := a.printOperation(op); err != nil {
			return err
		}
		return blocked
	}
	fmt.Fprintf(a.out, "%s %s: %d steps\n", op.GetKind().Word(), op.GetSubject(), len(op.GetSteps()))
	a.printSteps(op)
	a.printBalance(op)
	servers, err := listServers(ctx, c)
	if err != nil {
		return err
	}
	a.printRoom(op, servers)
	return blocked
}

// printRoom shows for each server that something goes to how much memory is free there and how much of it the steps may want: a target holds the
// whole VM for a moment.
func (a *app) printRoom(op *api.Operation, servers []*api.Server) {
	wanted := map[string]uint64{}
	for _, s := range op.GetSteps() {
		if s.Vcpu == nil {
			wanted[s.GetTo()] += s.GetBytes()
		}
	}
	lines := [][]string{{"TARGET", "FREE", "AT MOST WANTED", "SLOTS"}}
	for _, s := range servers {
		if n, ok := wanted[s.GetName()]; ok {
			free := s.GetMemoryBytes() - min(s.GetMemoryBytes(), s.GetMemoryUsedBytes())
			lines = append(lines, []string{s.GetName(), human(free), human(n), fmt.Sprint(s.GetSlots())})
		}
	}
	if len(lines) > 1 {
		fmt.Fprintln(a.out)
		a.table(lines)
	}
}

// ask shows what would be done and asks whether to.
func (a *app) ask(start func(dry bool) (*api.Operation, error)) error {
	op, err := start(true)
	if err != nil {
		return err
	}
	a.printSteps(op)
	fmt.Fprintf(a.err, "%s %s in %d steps? [y/N] ", op.GetKind().Word(), op.GetSubject(), len(op.GetSteps()))
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// badEnd is the error that an operation's bad end is.
type badEnd struct {
	text string
	late bool
}

func (e *badEnd) Error() string { return e.text }

// Is makes a deadline that passed the exit code.
func (e *badEnd) Is(target error) bool { return e.late && target == context.DeadlineExceeded }

func opError(op *api.Operation) error {
	switch op.GetState() {
	case api.OperationState_OPERATION_STATE_FAILED:
		d := op.GetDeadlineAt()
		return &badEnd{fmt.Sprintf("operation %d failed: %s", op.GetId(), op.GetNote()), d != nil && !op.GetEndedAt().AsTime().Before(d.AsTime())}
	case api.OperationState_OPERATION_STATE_CANCELLED:
		return &badEnd{text: fmt.Sprintf("operation %d was %s", op.GetId(), op.GetNote())}
	}
	return nil
}
