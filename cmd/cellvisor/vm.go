package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) vmCmd() *cobra.Command {
	return a.noun("vm", "Virtual machines",
		a.vmRunCmd(), a.vmLsCmd(), a.vmShowCmd(), a.vmPagesCmd(), a.vmWaitCmd(), a.vmProtectCmd(), a.vmMigrateCmd(), a.vmSpreadCmd(), a.vmGatherCmd(), a.vmStopCmd(), a.vmResetCmd(), a.vmPauseCmd(), a.vmResumeCmd(), a.vmSaveCmd(), a.vmRestoreCmd(), a.vmRmCmd(), a.vmConsoleCmd(), a.vmOutputCmd())
}

func (a *app) vmLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the VMs, ended ones included",
		Example: "  cellvisor vm ls\n  cellvisor vm ls -o wide\n  cellvisor vm ls -o json | jq '.[] | select(.state==\"lost\") | .reason'",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			vms, err := listVMs(ctx, c)
			if err != nil {
				return err
			}
			return show(a, vms, view.OfVM, (*api.VM).GetName, vmColumns)
		}),
	}
}

func listVMs(ctx context.Context, c *api.Client) ([]*api.VM, error) {
	var out []*api.VM
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListVMs(ctx, &api.ListVMsRequest{})
		out = resp.GetVms()
		return err
	})
	return out, err
}

func getVM(ctx context.Context, c *api.Client, name string) (*api.VM, error) {
	var out *api.VM
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.GetVM(ctx, &api.GetVMRequest{Name: name})
		out = resp.GetVm()
		return err
	})
	return out, err
}

var vmColumns = []column[*api.VM]{
	{head: "VM", cell: (*api.VM).GetName},
	{head: "STATE", cell: func(v *api.VM) string { return v.GetState().Word() }},
	{head: "VCPUS", cell: func(v *api.VM) string { return fmt.Sprint(v.GetVcpus()) }},
	{head: "MEMORY", cell: func(v *api.VM) string { return human(v.GetMemoryBytes()) }},
	{head: "CELLS", cell: func(v *api.VM) string { return dash(strings.Join(v.GetCells(), ",")) }},
	{head: "HOME", cell: func(v *api.VM) string { return dash(v.GetHome()) }},
	{head: "WEIGHT", cell: func(v *api.VM) string { return fmt.Sprint(v.GetWeight()) }, wide: true},
	{head: "PAYLOAD", cell: func(v *api.VM) string { return shortPayload(v.GetPayload()) }, wide: true},
	{head: "ON LOSS", cell: func(v *api.VM) string { return v.GetOnLoss().Word() }, wide: true},
	{head: "PROTECTION", cell: func(v *api.VM) string { return view.OfVM(v).Protection }},
	{head: "WORKERS", cell: func(v *api.VM) string { return workersLine(v) }, wide: true},
	{head: "AGE", cell: func(v *api.VM) string { return age(v.GetCreatedAt()) }, wide: true},
	{head: "REASON", cell: ending},
}

// ending says how a VM ended, for tables.
func ending(v *api.VM) string {
	if v.GetState() == api.VMState_VM_STATE_EXITED && v.GetReason() == "" {
		return fmt.Sprintf("status %d", v.GetExitStatus())
	}
	return v.GetReason()
}

func shortPayload(p string) string {
	if kind, sum, ok := strings.Cut(p, ":"); ok && len(sum) > 12 {
		return kind + ":" + sum[:12]
	}
	return p
}

// workersLine is "a-1:0,1 b-1:2,3".
func workersLine(v *api.VM) string {
	var out []string
	for _, w := range v.GetWorkers() {
		ids := strings.Join(view.Map(w.GetVcpus(), func(n uint32) string { return fmt.Sprint(n) }), ",")
		out = append(out, w.GetServer()+":"+ids)
	}
	return dash(strings.Join(out, " "))
}

func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return time.Since(t.AsTime()).Truncate(time.Second).String()
}

func (a *app) vmShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show all about a VM: parts, counters, why it ended",
		Example:           "  cellvisor vm show alpha\n  cellvisor vm show alpha -o json",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			v, err := getVM(ctx, c, names[0])
			if err != nil {
				return err
			}
			return a.printVM(v)
		}),
	}
}

func (a *app) printVM(v *api.VM) error {
	switch a.format {
	case "json":
		return a.json(view.OfVM(v))
	case "name":
		fmt.Fprintln(a.out, v.GetName())
		return nil
	}
	status := ""
	if v.GetState() == api.VMState_VM_STATE_EXITED {
		status = fmt.Sprint(v.GetExitStatus())
	}
	a.facts(
		"VM", v.GetName(),
		"state", v.GetState().Word(),
		"reason", v.GetReason(),
		"exit status", status,
		"vCPUs", fmt.Sprint(v.GetVcpus()),
		"memory", human(v.GetMemoryBytes()),
		"weight", fmt.Sprint(v.GetWeight()),
		"cells", strings.Join(v.GetCells(), ","),
		"home", v.GetHome(),
		"payload", v.GetPayload(),
		"arguments", v.GetArgs(),
		"command line", v.GetLinux().GetCmdline(),
		"processor", v.GetLinux().GetCpu(),
		"on loss", v.GetOnLoss().Word(),
		"protect", view.OfVM(v).Protect,
		"protection", protectionLine(v),
		"mirrors", mirrorsLine(v),
		"restarts", fmt.Sprintf("%d; %s", v.GetRestarts(), crashRule(v)),
		"checkpoints", checkpointsLine(v),
		"when lost", restartRule(v),
		"ID, epoch", fmt.Sprintf("%d, %d", v.GetId(), v.GetEpoch()),
		"console", logLine(v.GetConsoleBytes(), v.GetConsoleDroppedBytes(), "bytes"),
		"output", logLine(v.GetOutputRecords(), v.GetOutputDroppedRecords(), "records"),
		"created", moment(v.GetCreatedAt()),
		"started", moment(v.GetStartedAt()),
		"ended", moment(v.GetEndedAt()),
		"registers", v.GetRegisters(),
	)
	if len(v.GetWorkers()) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	lines := [][]string{{"PART", "SERVER", "PID", "VCPUS", "RESIDENT", "REMOTE READS", "REMOTE WRITES", "PAGES IN", "PAGES OUT", "STATE"}}
	for _, w := range v.GetWorkers() {
		lines = append(lines, workerLine(v, w))
	}
	a.table(lines)
	a.pagingTable(v)
	a.scrubTable(v)
	return nil
}

// pagingTable says how much of each part is in memory where memory is promised more than once.
func (a *app) pagingTable(v *api.VM) {
	lines := [][]string{{"PAGING", "LIMIT", "IN FILE", "IN", "OUT", "DROPPED", "ZERO", "AGAIN", "TAKES", "STATE"}}
	for _, w := range v.GetWorkers() {
		p := w.GetCounters().GetPaging()
		if p == nil {
			continue
		}
		state := "ok"
		if p.GetError() != "" {
			state = p.GetError()
		}
		n := func(v uint64) string { return fmt.Sprint(v) }
		lines = append(lines, []string{w.GetServer(), human(p.GetLimitBytes()), human(p.GetFileBytes()), n(p.GetIn()), n(p.GetOut()), n(p.GetDropped()), n(p.GetZero()),
			n(p.GetAgain()), n(p.GetInMicros()) + " us", state})
	}
	loans := [][]string{{"BORROWS", "FROM", "CELL", "MAY HOLD", "HOLDS"}}
	for _, w := range v.GetWorkers() {
		for _, o := range w.GetCounters().GetPaging().GetLoans() {
			loans = append(loans, []string{w.GetServer(), o.GetServer(), o.GetCell(), human(o.GetLimitBytes()), human(o.GetHeldBytes())})
		}
	}
	for _, t := range [][][]string{lines, loans} {
		if len(t) > 1 {
			fmt.Fprintln(a.out)
			a.table(t)
		}
	}
}

// checkpointsLine says what protection does, "" if there is none.
func checkpointsLine(v *api.VM) string {
	c := view.OfCheckpoints(v)
	if c == nil || c.Made == 0 {
		return ""
	}
	chosen := "adaptive"
	if v.GetCheckpointMs() > 0 {
		chosen = "as asked for"
	}
	ms := func(us uint64) string { return fmt.Sprintf("%.1f ms", float64(us)/1000) }
	return fmt.Sprintf("%d, every %s (%s); pause %s, median %s, p99 %s; safe after %s; %d pages and %s each; output held back: %d bytes",
		c.Made, ms(c.EveryUs), chosen, ms(c.PauseUs), ms(c.PauseMedianUs), ms(c.PauseP99Us), ms(c.SafeAfterUs), c.Pages/c.Made, human(c.Bytes/c.Made), c.HeldBytes)
}

func workerLine(v *api.VM, w *api.Worker) []string {
	state := "ready"
	switch {
	case w.GetLost():
		state = "lost"
	case v.GetState().Ended():
		state = "ended"
	case !w.GetReady():
		state = "starting"
	case w.GetMirror():
		state = "mirror"
	}
	ids := strings.Join(view.Map(w.GetVcpus(), func(n uint32) string { return fmt.Sprint(n) }), ",")
	line := []string{fmt.Sprint(w.GetPart()), w.GetServer(), fmt.Sprint(w.GetPid()), dash(ids)}
	k := w.GetCounters()
	if k == nil {
		return append(line, "-", "-", "-", "-", "-", state)
	}
	return append(line, human(k.GetResidentBytes()), fmt.Sprint(k.GetRemoteReads()), fmt.Sprint(k.GetRemoteWrites()),
		fmt.Sprint(k.GetPagesIn()), fmt.Sprint(k.GetPagesOut()), state)
}

func moment(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().Unix() == 0 {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05.000")
}

func (a *app) vmStopCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "stop NAME…",
		Short:             "End VMs; they stay listed as stopped",
		Example:           "  cellvisor vm stop alpha gamma",
		Args:              args(1, -1, "the name of at least one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_STARTING, api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.eachVM(func(ctx context.Context, svc api.CellvisorClient, name string) (*api.VM, error) {
			resp, err := svc.StopVM(ctx, &api.StopVMRequest{Name: name})
			return resp.GetVm(), err
		}),
	}
}

func (a *app) vmRmCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NAME…",
		Short:   "Forget ended VMs, with their console and output",
		Example: "  cellvisor vm rm alpha\n  cellvisor vm rm --force gamma",
		Args:    args(1, -1, "the name of at least one VM"),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			removed := []string{}
			err := a.each(ctx, names, func(name string) error {
				err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
					_, err := svc.RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: force})
					return err
				})
				if err == nil {
					removed = append(removed, name)
				}
				if err == nil && (a.format == "name" || a.format == "table") {
					fmt.Fprintln(a.out, name)
				}
				return err
			})
			if a.format == "json" {
				if jerr := a.json(removed); err == nil {
					err = jerr
				}
				return err
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "stop VMs that have not ended first")
	cmd.ValidArgsFunction = a.completeVMs()
	return cmd
}
