package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

// What the console shows in pictures, in words: counters, turns, pages, the load tree.

func (a *app) completeServers() cobra.CompletionFunc {
	return a.completeNames(func(ctx context.Context, c *api.Client) ([]string, error) {
		servers, err := listServers(ctx, c)
		return view.Map(servers, (*api.Server).GetName), err
	})
}

func (a *app) serverShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show all about a server, with its counters",
		Long:              "Prints what the cluster knows of a server, and the counters that it keeps. Names and meaning of counters may change in any release; metrics do not.",
		Example:           "  cellvisor server show a-1\n  cellvisor server show a-1 -o json | jq .counters",
		Args:              args(1, 1, "the name of one server"),
		ValidArgsFunction: a.completeServers(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			s, err := findServer(ctx, c, names[0])
			if err != nil {
				return err
			}
			var counters map[string]uint64
			if s.GetState() == api.ServerState_SERVER_STATE_LIVE {
				err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
					r, err := svc.DebugCounters(ctx, &api.DebugCountersRequest{Server: names[0]})
					counters = r.GetCounters()
					return err
				})
				if err != nil {
					return err
				}
			}
			return a.printServer(s, counters)
		}),
	}
}

func findServer(ctx context.Context, c *api.Client, name string) (*api.Server, error) {
	servers, err := listServers(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		if s.GetName() == name {
			return s, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no server is called %q: `cellvisor server ls` lists those there are", name)
}

func (a *app) printServer(s *api.Server, counters map[string]uint64) error {
	switch a.format {
	case "json":
		return a.json(view.OfServerDetail(s, counters))
	case "name":
		fmt.Fprintln(a.out, s.GetName())
		return nil
	}
	a.facts(
		"server", s.GetName(),
		"cell", s.GetCell(),
		"state", s.GetState().Word(),
		"role", s.GetRole().Word(),
		"vote", vote(s),
		"cordoned", yesNo(s.GetCordoned()),
		"slots", fmt.Sprintf("%d of %d used", s.GetSlotsUsed(), s.GetSlots()),
		"memory", human(s.GetMemoryUsedBytes())+" of "+human(s.GetMemoryBytes())+" used",
		"borrows from", strings.Join(s.GetBorrowsFrom(), ", "),
		"lends to", strings.Join(s.GetLendsTo(), ", "),
		"process", fmt.Sprint(s.GetPid()),
		"peer address", s.GetAddr(),
		"API", s.GetApiAddr(),
		"since epoch", fmt.Sprint(s.GetIncarnation()),
		"version", s.GetVersion(),
		"note", s.GetUnfitReason(),
	)
	if len(counters) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	lines := [][]string{{"COUNTER", "VALUE"}}
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] != 0 || a.format == "wide" {
			lines = append(lines, []string{name, fmt.Sprint(counters[name])})
		}
	}
	a.table(lines)
	return nil
}

func (a *app) serverSlicesCmd() *cobra.Command {
	var last time.Duration
	cmd := &cobra.Command{
		Use:   "slices NAME",
		Short: "Show which VMs ran on a server when",
		Long: `Prints the turns that the gang scheduler gave VMs on a server, the newest last. Turns with the same number on several servers are one slice: its gangs ran
together there. Where there are slots for all, no turns are taken and VMs run freely. "top" draws it: t on a server.`,
		Example:           "  cellvisor server slices a-1\n  cellvisor server slices a-1 --last 5s -o json",
		Args:              args(1, 1, "the name of one server"),
		ValidArgsFunction: a.completeServers(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			var r *api.SlicesResponse
			err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) (err error) {
				r, err = svc.Slices(ctx, &api.SlicesRequest{Server: names[0]})
				return err
			})
			if err != nil {
				return err
			}
			since := r.GetNowMicros() - min(r.GetNowMicros(), uint64(last.Microseconds()))
			r.Slices = slices.DeleteFunc(r.GetSlices(), func(s *api.Slice) bool { return s.GetEndMicros() != 0 && s.GetEndMicros() < since })
			return a.printSlices(r)
		}),
	}
	cmd.Flags().DurationVar(&last, "last", time.Second, "how far back")
	return cmd
}

func (a *app) printSlices(r *api.SlicesResponse) error {
	if a.format == "json" {
		return a.json(view.OfSlices(r))
	}
	if len(r.GetSlices()) == 0 && a.format != "name" {
		fmt.Fprintf(a.out, "no turns were taken on %s: there are slots for all, so VMs run freely\n", r.GetServer())
		return nil
	}
	lines := [][]string{{"SLICE", "VM", "AGO", "LASTED", "SLOTS", "TOGETHER WITH"}}
	for _, s := range r.GetSlices() {
		if a.format == "name" {
			fmt.Fprintln(a.out, s.GetVm())
			continue
		}
		lasted := "runs"
		if s.GetEndMicros() != 0 {
			lasted = micros(s.GetEndMicros() - s.GetBeginMicros())
		}
		lines = append(lines, []string{fmt.Sprint(s.GetNumber()), dash(s.GetVm()), micros(r.GetNowMicros() - s.GetBeginMicros()), lasted,
			dash(strings.Trim(fmt.Sprint(s.GetSlots()), "[]")), dash(strings.Join(s.GetWith(), " "))})
	}
	if a.format != "name" {
		a.table(lines)
	}
	return nil
}

func micros(n uint64) string {
	return (time.Duration(n) * time.Microsecond).Round(10 * time.Microsecond).String()
}

func (a *app) vmPagesCmd() *cobra.Command {
	var regions uint32
	cmd := &cobra.Command{
		Use:   "pages NAME",
		Short: "Show which part of a VM holds how many of its pages",
		Long: `Prints for each part of a VM how much of the memory it holds to write (nobody else has it) and to read (others may have it too). Pages that nobody holds were
never touched, or are zero. -o json tells it region by region; "top" draws it: m on a VM.`,
		Example:           "  cellvisor vm pages big\n  cellvisor vm pages big -o json --regions 64 | jq '.holders[] | {server, modified}'",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			var m *api.PageMapResponse
			err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) (err error) {
				m, err = svc.PageMap(ctx, &api.PageMapRequest{Name: names[0], Regions: regions})
				return err
			})
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(view.OfPageMap(m))
			}
			return show(a, m.GetHolders(), func(h *api.PageHolder) *api.PageHolder { return h }, (*api.PageHolder).GetServer, holderColumns)
		}),
	}
	cmd.Flags().Uint32Var(&regions, "regions", 0, "into how many regions at most the memory is divided (default 1024)")
	return cmd
}

var holderColumns = []column[*api.PageHolder]{
	{head: "PART", cell: func(h *api.PageHolder) string { return fmt.Sprint(h.GetPart()) }},
	{head: "SERVER", cell: (*api.PageHolder).GetServer},
	{head: "CELL", cell: (*api.PageHolder).GetCell},
	{head: "TO WRITE", cell: func(h *api.PageHolder) string { return pagesText(h, h.GetModified()) }},
	{head: "TO READ", cell: func(h *api.PageHolder) string { return pagesText(h, h.GetShared()) }},
	{head: "NOTE", cell: func(h *api.PageHolder) string {
		switch {
		case len(h.GetModified()) == 0:
			return "did not answer"
		case h.GetStandby():
			return "replica"
		}
		return ""
	}},
}

func pagesText(h *api.PageHolder, pages []uint32) string {
	if len(h.GetModified()) == 0 {
		return "?"
	}
	sum := uint64(0)
	for _, n := range pages {
		sum += uint64(n)
	}
	return human(sum * 4096)
}

func (a *app) cellShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a cell, its servers and the VMs that depend on it",
		Example:           "  cellvisor cell show b\n  cellvisor cell show b -o json",
		Args:              args(1, 1, "the name of one cell"),
		ValidArgsFunction: a.completeCells(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			cells, err := listCells(ctx, c)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(cells, func(x *api.Cell) bool { return x.GetName() == names[0] })
			if i < 0 {
				return status.Errorf(codes.NotFound, "no cell is called %q: `cellvisor cell ls` lists those there are", names[0])
			}
			if a.format == "json" {
				return a.json(view.OfCell(cells[i]))
			}
			if err := show(a, cells[i:i+1], view.OfCell, (*api.Cell).GetName, cellColumns); err != nil || a.format == "name" {
				return err
			}
			return a.showInside(ctx, c, names[0])
		}),
	}
}

// showInside lists what a cell has: servers and VMs.
func (a *app) showInside(ctx context.Context, c *api.Client, cell string) error {
	servers, err := listServers(ctx, c)
	if err != nil {
		return err
	}
	vms, err := listVMs(ctx, c)
	if err != nil {
		return err
	}
	servers = slices.DeleteFunc(servers, func(s *api.Server) bool { return s.GetCell() != cell })
	vms = slices.DeleteFunc(vms, func(v *api.VM) bool { return v.GetState().Ended() || !slices.Contains(v.GetCells(), cell) })
	fmt.Fprintln(a.out)
	if err := show(a, servers, view.OfServer, (*api.Server).GetName, serverColumns); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	return show(a, vms, view.OfVM, (*api.VM).GetName, vmColumns)
}

func (a *app) cellLoadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "load",
		Short: "Show the load tree: vCPUs, those with work, and slots of the cluster, its cells, their servers",
		Long: `Prints the tree that the balancer goes down: every node holds the load below it: vCPUs that have work, by what the servers told their parents. A VM's part
moves where two sides differ by more than one vCPU. "top" draws it: 8. "balance show" has it with the score.`,
		Example: "  cellvisor cell load",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			cells, err := listCells(ctx, c)
			if err != nil {
				return err
			}
			servers, err := listServers(ctx, c)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(view.Map(cells, view.OfCell))
			}
			b, err := getBalance(ctx, c, "")
			if err != nil {
				return err
			}
			tree := loadTree{busy: map[string]uint32{}, parent: map[string]string{}}
			for _, s := range b.GetServers() {
				tree.busy[s.GetServer()], tree.parent[s.GetServer()] = s.GetBusy(), s.GetParent()
				tree.busy["cell "+s.GetCell()] += s.GetBusy()
				tree.busy[""] += s.GetBusy()
			}
			all := &api.Cell{Name: "cluster"}
			lines := [][]string{{"TREE", "VCPUS", "SLOTS", "BUSY", "LOAD", "MEMORY", "REPORTS TO"}, nil}
			for _, cell := range cells {
				all.Slots, all.SlotsUsed = all.Slots+cell.GetSlots(), all.SlotsUsed+cell.GetSlotsUsed()
				all.MemoryBytes, all.MemoryUsedBytes = all.MemoryBytes+cell.GetMemoryBytes(), all.MemoryUsedBytes+cell.GetMemoryUsedBytes()
				lines = append(lines, tree.line("  "+cell.GetName(), "cell "+cell.GetName(), cell))
				for _, s := range servers {
					if s.GetCell() == cell.GetName() {
						lines = append(lines, tree.line("    "+s.GetName(), s.GetName(), s))
					}
				}
			}
			lines[1] = tree.line("cluster", "", all)
			a.table(lines)
			return nil
		}),
	}
}

// loaded is what has load: a cell or a server.
type loaded interface {
	GetSlots() uint32
	GetSlotsUsed() uint32
	GetMemoryBytes() uint64
	GetMemoryUsedBytes() uint64
}

// loadTree is what servers have told each other of their load: vCPUs with work below a node, and whom a server reports to.
type loadTree struct {
	busy   map[string]uint32
	parent map[string]string
}

func (t loadTree) line(name, node string, n loaded) []string {
	load := "-"
	if n.GetSlots() > 0 {
		load = fmt.Sprintf("%d%%", uint64(t.busy[node])*100/uint64(n.GetSlots()))
	}
	return []string{name, fmt.Sprint(n.GetSlotsUsed()), fmt.Sprint(n.GetSlots()), fmt.Sprint(t.busy[node]), load,
		human(n.GetMemoryUsedBytes()) + "/" + human(n.GetMemoryBytes()), dash(t.parent[node])}
}
