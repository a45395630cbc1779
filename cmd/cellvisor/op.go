package main

import (
	"context"
	"fmt"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) opCmd() *cobra.Command {
	return a.noun("op", "Operations: moves, drains and restores that go on whoever watches", a.opLsCmd(), a.opShowCmd(), a.opWatchCmd(), a.opCancelCmd())
}

func (a *app) opLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the operations, ended ones included",
		Example: "  cellvisor op ls\n  cellvisor op ls -o json | jq '.[] | select(.state==\"running\") | .id'",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			ops, err := listOperations(ctx, c)
			if err != nil {
				return err
			}
			return show(a, ops, view.OfOperation, opName, opColumns)
		}),
	}
}

func listOperations(ctx context.Context, c *api.Client) ([]*api.Operation, error) {
	var out []*api.Operation
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListOperations(ctx, &api.ListOperationsRequest{})
		out = resp.GetOperations()
		return err
	})
	return out, err
}

func opName(o *api.Operation) string { return fmt.Sprint(o.GetId()) }

var opColumns = []column[*api.Operation]{
	{head: "OP", cell: opName},
	{head: "KIND", cell: func(o *api.Operation) string { return o.GetKind().Word() }},
	{head: "SUBJECT", cell: (*api.Operation).GetSubject},
	{head: "STATE", cell: func(o *api.Operation) string { return o.GetState().Word() }},
	{head: "STEPS", cell: func(o *api.Operation) string {
		return fmt.Sprintf("%d/%d", view.OfOperation(o).StepsDone, len(o.GetSteps()))
	}},
	{head: "STARTED", cell: func(o *api.Operation) string { return moment(o.GetStartedAt()) }, wide: true},
	{head: "ENDED", cell: func(o *api.Operation) string { return dash(moment(o.GetEndedAt())) }, wide: true},
	{head: "BY", cell: func(o *api.Operation) string { return dash(o.GetBy()) }, wide: true},
	{head: "REASON", cell: func(o *api.Operation) string { return dash(o.GetReason()) }, wide: true},
	{head: "NOTE", cell: (*api.Operation).GetNote},
}

func getOperation(ctx context.Context, c *api.Client, id uint64) (*api.Operation, error) {
	var out *api.Operation
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.GetOperation(ctx, &api.GetOperationRequest{Id: id})
		out = resp.GetOperation()
		return err
	})
	return out, err
}

func (a *app) completeOps(running bool) cobra.CompletionFunc {
	return a.completeNames(func(ctx context.Context, c *api.Client) ([]string, error) {
		ops, err := listOperations(ctx, c)
		var out []string
		for _, o := range ops {
			if !running || o.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
				out = append(out, opName(o))
			}
		}
		return out, err
	})
}

func opID(word string) (uint64, error) {
	id, err := strconv.ParseUint(word, 10, 64)
	if err != nil || id == 0 {
		return 0, usagef("%q is no number of an operation: `cellvisor op ls` lists them", word)
	}
	return id, nil
}

func (a *app) opShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show ID",
		Short:             "Show an operation with its steps",
		Example:           "  cellvisor op show 214",
		Args:              args(1, 1, "the number of one operation"),
		ValidArgsFunction: a.completeOps(false),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			id, err := opID(words[0])
			if err != nil {
				return err
			}
			op, err := getOperation(ctx, c, id)
			if err != nil {
				return err
			}
			return a.printOperation(op)
		}),
	}
}

// printOperation prints an operation with its steps.
func (a *app) printOperation(o *api.Operation) error {
	switch a.format {
	case "json":
		return a.json(view.OfOperation(o))
	case "name":
		fmt.Fprintln(a.out, o.GetId())
		return nil
	}
	id := ""
	if o.GetId() != 0 {
		id = opName(o)
	}
	a.facts("operation", id, "what", o.GetKind().Word()+" "+o.GetSubject(), "state", o.GetState().Word(), "note", o.GetNote(), "reason", o.GetReason(),
		"by", o.GetBy(), "started", moment(o.GetStartedAt()), "ended", moment(o.GetEndedAt()), "deadline", moment(o.GetDeadlineAt()))
	a.printSteps(o)
	a.printBalance(o)
	return nil
}

func (a *app) printSteps(o *api.Operation) {
	if len(o.GetSteps()) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	lines := [][]string{{"STEP", "VM", "WHAT", "FROM", "TO", "AT MOST", "STATE", "STOOD STILL", "NOTE"}}
	for i, s := range o.GetSteps() {
		down := "-"
		if us := s.GetDownMicros(); us > 0 {
			down = fmt.Sprintf("%.1fms", float64(us)/1000)
		}
		what := s.GetKind()
		if s.Vcpu != nil {
			what = fmt.Sprintf("vCPU %d", s.GetVcpu())
			if us := s.GetDownMicros(); us > 0 {
				down = fmt.Sprintf("%dus", us)
			}
		}
		lines = append(lines, []string{fmt.Sprint(i + 1), s.GetVm(), what, s.GetFrom(), dash(s.GetTo()), human(s.GetBytes()), s.GetState(), down, s.GetNote()})
	}
	a.table(lines)
}

func (a *app) opWatchCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "watch ID",
		Short:             "Follow an operation until it has ended; exit code as for the command that started it",
		Long:              "Follows an operation until it has ended. Ctrl-C ends the watching only: the operation goes on, and the exit code is 5.",
		Example:           "  cellvisor op watch 214",
		Args:              args(1, 1, "the number of one operation"),
		ValidArgsFunction: a.completeOps(true),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			id, err := opID(words[0])
			if err != nil {
				return err
			}
			op, err := getOperation(ctx, c, id)
			if err != nil {
				return err
			}
			return a.watchOperation(ctx, c, op)
		}),
	}
}

func (a *app) opCancelCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel ID",
		Short:             "End an operation; what it moved stays where it is",
		Long:              "Ends an operation. What it moved stays where it is, and servers that it cordoned stay cordoned: `cell restore` takes that back.",
		Example:           "  cellvisor op cancel 214",
		Args:              args(1, 1, "the number of one operation"),
		ValidArgsFunction: a.completeOps(true),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, words []string) error {
			id, err := opID(words[0])
			if err != nil {
				return err
			}
			var op *api.Operation
			err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
				resp, err := svc.CancelOperation(ctx, &api.CancelOperationRequest{Id: id, By: operator()})
				op = resp.GetOperation()
				return err
			})
			if err != nil {
				return err
			}
			return a.printOperation(op)
		}),
	}
}

// operator is the name of who runs the command.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// watchEvery is how often a watched operation is looked at in the beginning; one that takes long is looked at less often, up to watchSeldom.
const (
	watchEvery  = 100 * time.Millisecond
	watchSeldom = time.Second
)

// watchAfter is how long to wait for the next look at an operation that has been watched for a while: a twentieth of that.
func watchAfter(watched time.Duration) time.Duration {
	return min(max(watched/20, watchEvery), watchSeldom)
}

// watchOperation follows an operation to its end and turns a bad one into an error.
func (a *app) watchOperation(ctx context.Context, c *api.Client, op *api.Operation) error {
	op, err := a.awaitOperation(ctx, c, op)
	if err != nil {
		return err
	}
	if err := a.printOperation(op); err != nil {
		return err
	}
	return opError(op)
}

// awaitOperation shows an operation's progress until it has ended.
func (a *app) awaitOperation(ctx context.Context, c *api.Client, op *api.Operation) (*api.Operation, error) {
	p := a.progress()
	defer p.done()
	if !p.on && op.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
		fmt.Fprintf(a.err, "watching operation %d, %s %s, which goes on without a watcher\n", op.GetId(), op.GetKind().Word(), op.GetSubject())
	}
	began := time.Now()
	heard := began
	for op.GetState() == api.OperationState_OPERATION_STATE_RUNNING {
		p.say("%s", progressLine(op, time.Now()))
		select {
		case <-time.After(watchAfter(time.Since(began))):
		case <-ctx.Done():
			p.done()
			return nil, api.Detached{Operation: fmt.Sprintf("operation %d (`cellvisor op watch %d`)", op.GetId(), op.GetId())}
		}
		next, err := getOperation(ctx, c, op.GetId())
		switch {
		case err == nil:
			op, heard = next, time.Now()
		case ctx.Err() == nil && !api.Absent(err, heard):
			return nil, err
		}
	}
	return op, nil
}

// progressLine is "operation 7: drain cell b: 3 of 10 steps, 192MiB of 640MiB, 60MiB/s, about 8s left; vm web: copying".
func progressLine(op *api.Operation, now time.Time) string {
	var all, moved uint64
	done := 0
	for _, s := range op.GetSteps() {
		all += s.GetBytes()
		if s.GetState() == "done" {
			done++
			moved += s.GetBytes()
		}
	}
	line := fmt.Sprintf("operation %d: %s %s: %d of %d steps, %s of %s", op.GetId(), op.GetKind().Word(), op.GetSubject(), done, len(op.GetSteps()), human(moved), human(all))
	if since := now.Sub(op.GetStartedAt().AsTime()).Seconds(); since > 0.5 && moved > 0 {
		rate := float64(moved) / since
		line += fmt.Sprintf(", %s/s, about %v left", human(uint64(rate)), time.Duration(float64(all-moved)/rate*float64(time.Second)).Round(time.Second))
	}
	if op.GetNote() != "" {
		return line + "; waits: " + op.GetNote()
	}
	for _, s := range op.GetSteps() {
		if s.GetState() != "done" && s.GetState() != "waiting" {
			return line + fmt.Sprintf("; vm %s: %s", s.GetVm(), s.GetState())
		}
	}
	return line
}
