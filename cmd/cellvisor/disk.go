package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) diskCmd() *cobra.Command {
	return a.noun("disk", "Disks of virtual machines, and their copies", a.diskLsCmd(), a.diskShowCmd(), a.diskRmCmd())
}

func listDisks(ctx context.Context, c *api.Client) ([]*api.DiskInfo, error) {
	var out []*api.DiskInfo
	err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.ListDisks(ctx, &api.ListDisksRequest{})
		out = resp.GetDisks()
		return err
	})
	return out, err
}

// diskCopies is "a-1 (home), b-1, c-1 stale".
func diskCopies(d *api.DiskInfo) string {
	return dash(strings.Join(view.Map(d.GetCopies(), func(c *api.DiskCopy) string {
		text := c.GetServer()
		if c.GetHome() {
			text += " (home)"
		}
		if c.GetState() != "current" {
			text += " " + c.GetState()
		}
		if !c.GetLive() {
			text += ", dead"
		}
		return text
	}), "; "))
}

func diskSize(d *api.DiskInfo) string {
	if d.GetSizeBytes() == 0 {
		return "as image"
	}
	return human(d.GetSizeBytes())
}

var diskColumns = []column[*api.DiskInfo]{
	{head: "DISK", cell: (*api.DiskInfo).GetName},
	{head: "SIZE", cell: diskSize},
	{head: "VM", cell: func(d *api.DiskInfo) string { return dash(d.GetVm()) }},
	{head: "COPIES", cell: diskCopies},
	{head: "IMAGE", cell: func(d *api.DiskInfo) string { return dash(d.GetSource()) }, wide: true},
}

func (a *app) diskLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the disks, those that no VM has included",
		Example: "  cellvisor disk ls\n  cellvisor disk ls -o json | jq '.[] | select(.vm==\"\")'",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			disks, err := listDisks(ctx, c)
			if err != nil {
				return err
			}
			return show(a, disks, view.OfDisk, (*api.DiskInfo).GetName, diskColumns)
		}),
	}
}

func (a *app) diskShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a disk and its copies",
		Example:           "  cellvisor disk show db\n  cellvisor disk show db -o json",
		Args:              args(1, 1, "the name of one disk"),
		ValidArgsFunction: a.completeDisks(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			disks, err := listDisks(ctx, c)
			if err != nil {
				return err
			}
			for _, d := range disks {
				if d.GetName() == names[0] {
					return a.printDisk(d)
				}
			}
			return fmt.Errorf("no disk is called %q: `cellvisor disk ls` lists those there are", names[0])
		}),
	}
}

func (a *app) printDisk(d *api.DiskInfo) error {
	switch a.format {
	case "json":
		return a.json(view.OfDisk(d))
	case "name":
		fmt.Fprintln(a.out, d.GetName())
		return nil
	}
	a.facts("disk", d.GetName(), "size", diskSize(d), "VM", d.GetVm(), "image", d.GetSource())
	fmt.Fprintln(a.out)
	lines := [][]string{{"SERVER", "CELL", "COPY", "HOME", "SERVER IS"}}
	for _, c := range d.GetCopies() {
		lines = append(lines, []string{c.GetServer(), c.GetCell(), c.GetState(), yesNo(c.GetHome()), map[bool]string{true: "live", false: "dead"}[c.GetLive()]})
	}
	a.table(lines)
	return nil
}

func (a *app) diskRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME…",
		Short:             "Forget disks that no VM has, and delete their copies; an image file that was named by its path stays",
		Example:           "  cellvisor disk rm scratch",
		Args:              args(1, -1, "the name of at least one disk"),
		ValidArgsFunction: a.completeDisks(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			for _, name := range names {
				err := c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
					_, err := svc.RemoveDisk(ctx, &api.RemoveDiskRequest{Name: name})
					return err
				})
				if err != nil {
					return err
				}
			}
			if a.format == "json" {
				return a.json(names)
			}
			for _, name := range names {
				fmt.Fprintln(a.out, name)
			}
			return nil
		}),
	}
}
