package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/local"
)

// localHost gives a drill the processes of a local cluster.
type localHost struct{ c *local.Cluster }

func (h localHost) Dir() string { return h.c.Dir }

// addr is where one server's API is reached.
func (h localHost) addr(server string) string {
	for _, s := range h.c.Servers {
		if s.Name == server {
			return s.API
		}
	}
	return ""
}

func (h localHost) Servers() (out []drill.HostServer) {
	for _, s := range h.c.Servers {
		out = append(out, drill.HostServer{Name: s.Name, Cell: s.Cell})
	}
	return out
}

func (h localHost) Processes() ([]drill.Process, error) {
	members, err := local.Find(h.c.Dir)
	var out []drill.Process
	for _, m := range members {
		out = append(out, drill.Process{PID: m.PID, StartTicks: m.StartTicks, Server: m.Server, Worker: m.Kind == local.KindWorker})
	}
	return out, err
}

func identity(p drill.Process) local.Process {
	return local.Process{PID: p.PID, StartTicks: p.StartTicks}
}

func (h localHost) Signal(sig syscall.Signal, to ...drill.Process) error {
	var list []local.Process
	for _, p := range to {
		list = append(list, identity(p))
	}
	return local.Signal(sig, list...)
}

func (h localHost) Start(server string) error {
	_, err := local.StartServer(h.c.Dir, server, "")
	return err
}

func (h localHost) Self() drill.Process {
	p, _ := local.Identify(os.Getpid()) // our own process is there
	return drill.Process{PID: p.PID, StartTicks: p.StartTicks}
}

func (h localHost) Alive(p drill.Process) bool { return identity(p).Alive() }

func (a *app) drillHealCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "heal",
		Short: "Undo what a drill left whose runner died",
		Long: `Continues the processes that the drill stopped, starts the servers that it killed, removes its VMs, and checks that all servers are live. It may be
repeated. Without anything to heal it says so and succeeds.`,
		Example: "  cellvisor drill heal",
		Args:    args(0, 0, ""),
		RunE: a.does(func(ctx context.Context, _ []string) error {
			c, err := a.drillCluster(dir)
			if err != nil {
				return err
			}
			h, err := drill.HealAt(ctx, localHost{c}, func(ctx context.Context) (drill.Cluster, func(), error) {
				client, err := api.Dial(ctx, c.Addrs())
				if err != nil {
					return nil, nil, err
				}
				return drill.Connect(client, localHost{c}.addr), client.Close, nil
			})
			if errors.Is(err, drill.ErrNoJournal) {
				fmt.Fprintln(a.err, "There is nothing to heal.")
				return nil
			}
			if err != nil {
				return err
			}
			if a.format == "json" {
				err = a.json(h)
			} else {
				err = h.Text(a.out, a.drillMark)
			}
			if err == nil && !h.OK {
				return exitStatus(api.ExitError)
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the local cluster (default $CELLVISOR_DIR, else as for up)")
	return cmd
}

func (a *app) drillWhatIfCmd() *cobra.Command {
	var kill []string
	cmd := &cobra.Command{
		Use:   "whatif --kill CELL|SERVER[,…]",
		Short: "Say what the loss of cells or servers would mean now, and change nothing",
		Long: `Reads the live state and says which VMs would be lost, which would go on and from which standby, and whether a quorum would be left. Exit code 3 if a VM
would be lost or the quorum would be.`,
		Example: "  cellvisor drill whatif --kill b\n  cellvisor drill whatif --kill a-1,c-1 -o json",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			if len(kill) == 0 {
				return usagef("--kill is missing: name cells or servers")
			}
			return nil
		},
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			f, err := drill.WhatIf(ctx, drill.Connect(c, nil), kill)
			if err != nil {
				return err
			}
			if a.format == "json" {
				err = a.json(f)
			} else {
				for _, line := range f.Lines() {
					fmt.Fprintln(a.out, line)
				}
			}
			if err == nil && f.Costs() {
				return exitStatus(api.ExitBlocked)
			}
			return err
		}),
	}
	cmd.Flags().StringSliceVar(&kill, "kill", nil, "cells and servers, separated by commas")
	_ = cmd.RegisterFlagCompletionFunc("kill", a.completeCells())
	return cmd
}
