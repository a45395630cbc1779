package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
	"github.com/cellvisor/cellvisor/local"
)

func (a *app) serverCmd() *cobra.Command {
	return a.noun("server", "Servers: hosts and their serve processes",
		append([]*cobra.Command{a.serverLsCmd(), a.serverShowCmd(), a.serverSlicesCmd(), a.serverStartCmd()}, a.placeCmds(place{noun: "server", one: "b-1"})...)...)
}

func (a *app) serverLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the servers, dead ones included",
		Example: "  cellvisor server ls\n  cellvisor server ls -o json | jq -r '.[] | select(.cell==\"b\") | .pid'",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			servers, err := listServers(ctx, c)
			if err != nil {
				return err
			}
			return show(a, servers, view.OfServer, (*api.Server).GetName, serverColumns)
		}),
	}
}

func listServers(ctx context.Context, c *api.Client) ([]*api.Server, error) {
	var out []*api.Server
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListServers(ctx, &api.ListServersRequest{})
		out = resp.GetServers()
		return err
	})
	return out, err
}

var serverColumns = []column[*api.Server]{
	{head: "SERVER", cell: (*api.Server).GetName},
	{head: "CELL", cell: func(s *api.Server) string { return dash(s.GetCell()) }},
	{head: "STATE", cell: func(s *api.Server) string { return s.GetState().Word() }},
	{head: "ROLE", cell: func(s *api.Server) string { return s.GetRole().Word() }},
	{head: "VOTE", cell: vote},
	{head: "SLOTS", cell: func(s *api.Server) string { return fmt.Sprintf("%d/%d", s.GetSlotsUsed(), s.GetSlots()) }},
	{head: "MEMORY", cell: func(s *api.Server) string { return human(s.GetMemoryUsedBytes()) + "/" + human(s.GetMemoryBytes()) }},
	{head: "PID", cell: func(s *api.Server) string { return fmt.Sprint(s.GetPid()) }},
	{head: "ADDR", cell: (*api.Server).GetAddr, wide: true},
	{head: "SINCE EPOCH", cell: func(s *api.Server) string { return fmt.Sprint(s.GetIncarnation()) }, wide: true},
	{head: "VERSION", cell: (*api.Server).GetVersion, wide: true},
	{head: "NOTE", cell: func(s *api.Server) string { return s.GetUnfitReason() }},
}

func vote(s *api.Server) string {
	switch {
	case s.GetLeader():
		return "leader"
	case s.GetVoter():
		return "voter"
	}
	return "-"
}

// startPatience is how long "server start" waits for a server to answer, or to end.
const startPatience = 5 * time.Second

func (a *app) serverStartCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Start a dead server of a local cluster again, on its own data",
		Long: `Starts the serve process of a server whose process has ended, in a cluster that "up" made. It comes back with what its log and disk hold, and is
admitted to the view as new. The process belongs to the cluster: "down" ends it. If it ends at once, the error tells why.`,
		Example: "  cellvisor server start b-1\n  cellvisor server start b-1 --dir /tmp/lab",
		Args:    args(1, 1, "the name of one server"),
		RunE: a.does(func(ctx context.Context, names []string) error {
			d, err := a.dir(dir)
			if err != nil {
				return err
			}
			p, err := local.StartServer(d, names[0], "")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, startPatience)
			defer cancel()
			if err := local.Answers(ctx, d, names[0], p); err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(map[string]any{"name": names[0], "pid": p.PID})
			}
			fmt.Fprintf(a.out, "server %s started as process %d\n", names[0], p.PID)
			return nil
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the local cluster (default $CELLVISOR_DIR, else as for up)")
	cmd.ValidArgsFunction = a.completeServers()
	return cmd
}
