package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) balanceCmd() *cobra.Command {
	return a.noun("balance", "How the load is spread over servers, and making it even", a.balanceShowCmd(), a.balancePlanCmd(), a.balanceApplyCmd(), a.balanceModeCmd())
}

func (a *app) balanceShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the load of each server, and how uneven it is",
		Long: `Shows how many vCPUs are on each server, how many of them have work, and the load tree: each server tells its parent which vCPUs idle. The score is 0 if
all servers have the same load for each slot; a difference of two vCPUs between two servers of four slots makes 0.5.`,
		Example: "  cellvisor balance show\n  cellvisor balance show -o json | jq .score",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			return a.balance(ctx, c, "")
		}),
	}
}

func (a *app) balanceModeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "mode [off|suggest|auto]",
		Short: "Tell or choose who acts when the load is uneven",
		Long: `off: nobody, but for "balance apply". suggest: the event balance.suggested tells what could be done. auto: the cluster moves VMs by itself, some at a
time, each of them at most once in 30 seconds, as operations that "op ls" lists and "op cancel" ends.`,
		Example:   "  cellvisor balance mode\n  cellvisor balance mode auto",
		Args:      args(0, 1, "one of off, suggest, auto"),
		ValidArgs: []string{"off", "suggest", "auto"},
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			mode := ""
			if len(words) > 0 {
				if mode = words[0]; mode != "off" && mode != "suggest" && mode != "auto" {
					return usagef("mode %q must be off, suggest or auto", mode)
				}
			}
			b, err := getBalance(ctx, c, mode)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(view.OfBalance(b))
			}
			fmt.Fprintln(a.out, b.GetMode())
			return nil
		}),
	}
}

func getBalance(ctx context.Context, c *api.Client, mode string) (out *api.BalanceResponse, err error) {
	err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) (err error) {
		out, err = svc.Balance(ctx, &api.BalanceRequest{Mode: mode})
		return err
	})
	return out, err
}

func (a *app) balance(ctx context.Context, c *api.Client, mode string) error {
	b, err := getBalance(ctx, c, mode)
	if err != nil {
		return err
	}
	if a.format == "json" {
		return a.json(view.OfBalance(b))
	}
	lines := [][]string{{"SERVER", "CELL", "SLOTS", "VCPUS", "BUSY", "LOAD", "REPORTS TO"}}
	for _, s := range b.GetServers() {
		load := "-"
		if s.GetSlots() > 0 {
			load = fmt.Sprintf("%.2f", float64(s.GetBusy())/float64(s.GetSlots()))
		}
		name := s.GetServer()
		if s.GetCordoned() {
			name += " (cordoned)"
		}
		lines = append(lines, []string{name, s.GetCell(), fmt.Sprint(s.GetSlots()), fmt.Sprint(s.GetVcpus()), fmt.Sprint(s.GetBusy()), load, dash(s.GetParent())})
	}
	a.table(lines)
	_, err = fmt.Fprintf(a.out, "\nmode %s; score %.3f; load tree of depth %d, root %s\n", b.GetMode(), float64(b.GetScore())/1000, b.GetDepth(), dash(b.GetRoot()))
	return err
}

func (a *app) balancePlanCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "List the moves that would make the load even, with their reasons",
		Long: `Lists the moves that would make the load even, each with its reason, and the score before and after. A VM's part is never moved where another part of it is, to
a server that is cordoned or too small, out of its span, or into more cells than it depends on. Single vCPUs go only to servers that hold a part of their VM, as
"vm migrate --vcpu" has them go, and as long as there is a slot for each; no cell of the span is left without one. At last, VMs that run on several servers or lie
in several cells without having been asked to are brought together where the load stays as even as it is.`,
		Example: "  cellvisor balance plan\n  cellvisor balance plan -o json | jq '.steps[].reason'",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			return a.operate(ctx, c, &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_BALANCE}, opFlags{dryRun: true})
		}),
	}
}

func (a *app) balanceApplyCmd() *cobra.Command {
	var f opFlags
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Move VMs so that the load is even",
		Long: `Does what "balance plan" lists, with VMs running: each stands still for some milliseconds, and a single vCPU for less than one. A move that has become impossible is left out. The work goes on in
the cluster under a number: Ctrl-C ends the watching only (exit code 5).`,
		Example: "  cellvisor balance apply --yes\n  cellvisor balance apply --detach --max-parallel 1",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			return a.operate(ctx, c, &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_BALANCE, MaxParallel: f.parallel, Reason: f.reason}, f)
		}),
	}
	f.common(cmd)
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

// printBalance prints the scores of a balance, and why its moves are wanted.
func (a *app) printBalance(o *api.Operation) {
	if o.GetKind() != api.OperationKind_OPERATION_KIND_BALANCE {
		return
	}
	fmt.Fprintf(a.out, "\nscore %.3f before, %.3f after\n", float64(o.GetScoreBefore())/1000, float64(o.GetScoreAfter())/1000)
	for i, s := range o.GetSteps() {
		fmt.Fprintf(a.out, "step %d: %s\n", i+1, s.GetReason())
	}
}
