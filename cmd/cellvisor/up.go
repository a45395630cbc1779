package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/local"
)

// upFlags are the options of `up`.
type upFlags struct {
	cells, servers, slots int
	overcommit, slow      int
	lend                  bool
	memory, dir, sched    string
	drills                string
	detach, respawn, keep bool
	plainPages, noJail    bool
	timeout               time.Duration
}

func (a *app) upCmd() *cobra.Command {
	var f upFlags
	var command []string
	cmd := &cobra.Command{
		Use:   "up [-- CMD...]",
		Short: "Start a cluster on this machine",
		Long: `Starts a cluster of real serve processes on the loopback interface: cells a, b, c, …, servers a-1, a-2, …, and a witness if there are two cells.

In the foreground it stays until Ctrl-C and then takes the cluster down. With --detach it returns when all servers are live. With -- CMD it runs
CMD with CELLVISOR_ADDR and CELLVISOR_DIR set when all servers are live, then takes the cluster down and exits with CMD's status; unless --dir is
given, the cluster then lies in a directory of its own that is removed at the end.

A directory that holds a stopped cluster is started again as it was.`,
		Example: `  cellvisor up
  cellvisor up --cells 3 --servers 2 --detach --dir /tmp/lab
  cellvisor up --cells 2 -- cellvisor vm run first --payload hello --wait`,
		Args: func(cmd *cobra.Command, got []string) error {
			n := cmd.ArgsLenAtDash()
			if n > 0 || n < 0 && len(got) > 0 {
				return usagef("%q takes a command only after --, got %s", cmd.CommandPath(), strings.Join(got, " "))
			}
			if n == 0 && len(got) == 0 {
				return usagef("there is no command after --")
			}
			command = got
			return nil
		},
		RunE: func(cmd *cobra.Command, got []string) error {
			opt, err := f.options(a, cmd, command)
			if err != nil {
				return err
			}
			return a.does(func(ctx context.Context, _ []string) error { return a.up(ctx, f, opt, command) })(cmd, got)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.cells, "cells", 3, "number of cells")
	fl.IntVar(&f.servers, "servers", 1, "servers in each cell")
	fl.IntVar(&f.slots, "slots", 4, "vCPUs that a server may run at a time")
	fl.StringVar(&f.sched, "sched", "gang", "the vCPUs of a VM run together or not at all, or as Linux likes (gang|host)")
	fl.StringVar(&f.memory, "memory", "", "guest memory of each server (default: a fair share of what is available)")
	fl.BoolVar(&f.lend, "lend", false, "let servers that are short of memory borrow from others (new clusters)")
	fl.IntVar(&f.overcommit, "overcommit", 1, "promise guests so many times that much; they get it as they touch it (new clusters)")
	fl.StringVar(&f.dir, "dir", "", "directory of the cluster (default $CELLVISOR_DIR, else below $XDG_RUNTIME_DIR or /tmp)")
	fl.BoolVarP(&f.detach, "detach", "d", false, "return when all servers are live")
	fl.BoolVar(&f.respawn, "respawn", false, "start servers again that end")
	fl.BoolVar(&f.keep, "keep", false, "with -- CMD and without --dir: keep the directory")
	fl.BoolVar(&f.plainPages, "plain-pages", false, "do not encrypt page traffic; it is authenticated all the same")
	fl.BoolVar(&f.noJail, "no-jail", false, "let workers do all that you may")
	fl.IntVar(&f.slow, "slow", 1, "give servers so many times the usual time to answer each other, for a slow machine (new clusters)")
	fl.StringVar(&f.drills, "drills", "refuse", "whether drills may break this cluster (allow|refuse)")
	fl.DurationVar(&f.timeout, "timeout", time.Minute, "how long the servers may take to come alive")
	return cmd
}

// options checks the command line. Values that were not given are left to the cluster that may be in the directory.
func (f *upFlags) options(a *app, cmd *cobra.Command, command []string) (opt local.Options, err error) {
	given := cmd.Flags().Changed
	switch {
	case f.cells < 1 || f.cells > local.MaxCells:
		return opt, usagef("--cells %d must be from 1 to %d", f.cells, local.MaxCells)
	case f.servers < 1 || f.servers > local.MaxServers:
		return opt, usagef("--servers %d must be from 1 to %d", f.servers, local.MaxServers)
	case f.slots < 1 || f.slots > 1024:
		return opt, usagef("--slots %d must be from 1 to 1024", f.slots)
	case f.overcommit < 1 || f.overcommit > 64:
		return opt, usagef("--overcommit %d must be from 1 to 64", f.overcommit)
	case f.slow < 1 || f.slow > local.MaxSlow:
		return opt, usagef("--slow %d must be from 1 to %d", f.slow, local.MaxSlow)
	case f.sched != string(config.SchedGang) && f.sched != string(config.SchedHost):
		return opt, usagef("--sched %q must be gang or host", f.sched)
	case f.drills != "allow" && f.drills != "refuse":
		return opt, usagef("--drills %q must be allow or refuse", f.drills)
	case f.detach && len(command) > 0:
		return opt, usagef("--detach and -- CMD exclude each other")
	case f.detach && f.respawn:
		return opt, usagef("--respawn needs a foreground process that watches: leave --detach out")
	}
	if f.memory != "" {
		if opt.Shape.Memory, err = config.ParseSize(f.memory); err != nil {
			return opt, usagef("--memory: %w", err)
		}
	}
	opt.Shape.PlainPages, opt.Shape.NoJail, opt.Shape.Drills = f.plainPages, f.noJail, f.drills == "allow"
	opt.Shape.Overcommit, opt.Shape.Slow, opt.Shape.Lend = f.overcommit, f.slow, f.lend
	if given("cells") {
		opt.Shape.Cells = f.cells
	}
	if given("servers") {
		opt.Shape.PerCell = f.servers
	}
	if given("slots") {
		opt.Shape.Slots = f.slots
	}
	if given("sched") {
		opt.Shape.Sched = config.Sched(f.sched)
	}
	if f.ephemeral(command) {
		return opt, nil
	}
	opt.Dir, err = a.dir(f.dir)
	return opt, err
}

// ephemeral tells whether the cluster gets a directory of its own that is removed at the end.
func (f *upFlags) ephemeral(command []string) bool { return len(command) > 0 && f.dir == "" }

func (a *app) up(ctx context.Context, f upFlags, opt local.Options, command []string) (err error) {
	if f.ephemeral(command) {
		if opt.Dir, err = os.MkdirTemp("", "cv-"); err != nil {
			return err
		}
		if opt.Dir, err = local.Abs(opt.Dir); err != nil {
			return err
		}
		if !f.keep {
			defer func() { err = errors.Join(err, local.Purge(opt.Dir)) }()
		}
	}
	start := time.Now()
	p := a.progress()
	defer p.done()
	p.say("starting servers")
	s, err := local.Start(opt)
	if err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err = s.WaitLive(wctx, func(live, total int) { p.say("%d of %d servers live", live, total) })
	p.done()
	if err != nil {
		_, derr := local.Down(opt.Dir)
		if ctx.Err() != nil {
			err = errors.New("interrupted; the servers were ended again")
		}
		return errors.Join(err, derr)
	}
	took := time.Since(start)
	switch {
	case f.detach:
		return a.announceUp(s.Cluster, took, "cellvisor down"+dirFlag(s.Cluster.Dir))
	case len(command) > 0:
		err = a.runInside(ctx, s, command)
	default:
		if err = a.announceUp(s.Cluster, took, "Ctrl-C"); err == nil {
			err = s.Watch(ctx, f.respawn, a.reportExit)
		}
	}
	p.say("taking the cluster down")
	_, derr := local.Down(opt.Dir)
	if err == nil {
		err = derr
	}
	return err
}

// dirFlag is the --dir option that a user must repeat, empty for the default directory.
func dirFlag(dir string) string {
	if def, err := local.Abs(local.DefaultDir()); err == nil && def == dir {
		return ""
	}
	return " --dir " + dir
}

func (a *app) reportExit(e local.Exit) {
	fmt.Fprintf(a.err, "cellvisor: server %s ended (%s)\n", e.Server, e.Why)
}

// announceUp says what runs and how to use it.
func (a *app) announceUp(c *local.Cluster, took time.Duration, end string) error {
	switch a.format {
	case "json":
		return a.json(c)
	case "name":
		for _, s := range c.Servers {
			fmt.Fprintln(a.out, s.Name)
		}
		return nil
	}
	var servers []string
	for _, s := range c.Servers {
		servers = append(servers, s.Name)
	}
	fmt.Fprintf(a.out, "The cluster is live after %.1f s: servers %s, in %s.\n\n", took.Seconds(), strings.Join(servers, ", "), c.Dir)
	if dirFlag(c.Dir) != "" {
		fmt.Fprintf(a.out, "  export CELLVISOR_DIR=%s\n", c.Dir)
	}
	fmt.Fprintf(a.out, `  cellvisor status
  cellvisor vm run first --payload hello --vcpus 2 --wait
  cellvisor vm console first

`)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		fmt.Fprint(a.out, "This machine has no /dev/kvm, so no VM can run; see `cellvisor doctor`.\n")
	}
	fmt.Fprintf(a.out, "To take it down: %s\n", end)
	return nil
}

// runInside runs the command and returns its status. A signal to us is passed on to it; the cluster stays up until it has ended.
func (a *app) runInside(ctx context.Context, s *local.Session, command []string) error {
	if exe, err := os.Executable(); err == nil { // the command finds this program under its name
		_ = os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(exe))
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return fmt.Errorf("cannot run %s: %w", command[0], err)
	}
	cmd := exec.Command(path, command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Env = append(os.Environ(), "CELLVISOR_ADDR="+s.Cluster.Addrs(), "CELLVISOR_DIR="+s.Cluster.Dir)
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	const patience = 10 * time.Second
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGINT)
		select {
		case err = <-done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			err = <-done
		}
	}
	return commandStatus(err)
}

// commandStatus turns the end of a command into ours: its status, or 128 and the signal's number as a shell does.
func commandStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitStatus(128 + int(ws.Signal()))
	}
	return exitStatus(exit.ExitCode())
}
