package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

func (a *app) doctorCmd() *cobra.Command {
	var memory, file string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine can run VMs, with a fix for each finding",
		Long: `Tries everything that a server needs of this machine and says for each finding what to do. Exit code 0 if VMs can run here, 1 if not; a warning
costs speed or size only. It looks at the jail of workers and at certificates too: those of the server whose configuration --config names, else of
/etc/cellvisor/server.hcl, else of the local cluster.`,
		Example: "  cellvisor doctor\n  cellvisor doctor --config /etc/cellvisor/server.hcl\n  cellvisor doctor --memory 16GiB -o json",
		Args:    args(0, 0, ""),
		RunE: a.does(func(context.Context, []string) error {
			size, err := config.ParseSize(memory)
			if err != nil {
				return usagef("--memory: %w", err)
			}
			checks := append(probe.All(size), a.securityChecks(file, time.Now())...)
			if err := a.printChecks(checks); err != nil {
				return err
			}
			if probe.Err(checks) != nil {
				return exitStatus(api.ExitError)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration of a server, whose certificate is looked at")
	cmd.Flags().StringVar(&memory, "memory", "0", "memory that this machine shall give to guests")
	return cmd
}

func (a *app) printChecks(checks []probe.Check) error {
	switch a.format {
	case "json":
		return a.json(checks)
	case "name":
		for _, c := range checks {
			fmt.Fprintln(a.out, c.Name)
		}
		return nil
	}
	paint := a.painter()
	for _, c := range checks {
		mark := paint.green("ok  ")
		switch {
		case !c.OK && c.Needed:
			mark = paint.red("FAIL")
		case !c.OK:
			mark = paint.wrap("33", "warn")
		}
		fmt.Fprintf(a.out, "%s  %-12s  %s\n", mark, c.Name, c.Detail)
		if c.Fix != "" && !c.OK {
			fmt.Fprintf(a.out, "      %-12s  fix: %s\n", "", c.Fix)
		}
	}
	return nil
}
