package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) cellCmd() *cobra.Command {
	ls := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the cells, dead ones included",
		Example: "  cellvisor cell ls\n  cellvisor cell ls -o json",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			cells, err := listCells(ctx, c)
			if err != nil {
				return err
			}
			return show(a, cells, view.OfCell, (*api.Cell).GetName, cellColumns)
		}),
	}
	return a.noun("cell", "Cells: the units of fault containment", append([]*cobra.Command{ls, a.cellShowCmd(), a.cellLoadCmd()}, a.placeCmds(place{noun: "cell", one: "b"})...)...)
}

func listCells(ctx context.Context, c *api.Client) ([]*api.Cell, error) {
	var out []*api.Cell
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListCells(ctx, &api.ListCellsRequest{})
		out = resp.GetCells()
		return err
	})
	return out, err
}

var cellColumns = []column[*api.Cell]{
	{head: "CELL", cell: (*api.Cell).GetName},
	{head: "STATE", cell: func(c *api.Cell) string { return c.GetState().Word() }},
	{head: "SERVERS", cell: func(c *api.Cell) string { return fmt.Sprintf("%d/%d", c.GetServersLive(), len(c.GetServers())) }},
	{head: "SLOTS", cell: func(c *api.Cell) string { return fmt.Sprintf("%d/%d", c.GetSlotsUsed(), c.GetSlots()) }},
	{head: "MEMORY", cell: func(c *api.Cell) string { return human(c.GetMemoryUsedBytes()) + "/" + human(c.GetMemoryBytes()) }},
	{head: "VMS", cell: func(c *api.Cell) string { return fmt.Sprint(c.GetVms()) }},
	{head: "NAMES", cell: func(c *api.Cell) string { return strings.Join(c.GetServers(), ",") }, wide: true},
	{head: "CORDONED", cell: func(c *api.Cell) string { return yesNo(c.GetCordoned()) }, wide: true},
}
