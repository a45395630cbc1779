package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/drills"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/rehearsal"
)

func (a *app) drillCmd() *cobra.Command {
	return a.noun("drill", "Drills: rehearse failure on a real cluster or on the simulator", a.drillLsCmd(), a.drillLintCmd(), a.drillRunCmd(), a.drillHealCmd(), a.drillWhatIfCmd())
}

// readDrill reads a drill from a file, or a ready one by its name.
func readDrill(name string) (file string, src []byte, err error) {
	src, err = os.ReadFile(name)
	if err == nil || strings.HasSuffix(name, ".star") || strings.ContainsRune(name, filepath.Separator) {
		return name, src, err
	}
	src, err = drills.Read(name)
	return name, src, err
}

// drillInfo is an entry of `drill ls -o json`.
type drillInfo struct {
	Name     string `json:"name"`
	Cells    int    `json:"cells"`
	Servers  int    `json:"servers_per_cell"`
	MaxCells int    `json:"max_cells"`
	About    string `json:"about"`
}

func (a *app) drillLsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls [FILE...]",
		Aliases: []string{"list"},
		Short:   "List the ready drills, or those in files",
		Example: "  cellvisor drill ls\n  cellvisor drill ls mine/*.star",
		Args:    args(0, -1, ""),
		RunE: a.does(func(_ context.Context, names []string) error {
			if len(names) == 0 {
				names = drills.Names()
			}
			var list []drillInfo
			for _, name := range names {
				file, src, err := readDrill(name)
				if err != nil {
					return err
				}
				p, err := drill.Load(file, src)
				if err != nil {
					return err
				}
				list = append(list, drillInfo{p.Name, p.Cells, p.Servers, p.MaxCells, p.About})
			}
			return show(a, list, func(i drillInfo) drillInfo { return i }, func(i drillInfo) string { return i.Name }, []column[drillInfo]{
				{head: "DRILL", cell: func(i drillInfo) string { return i.Name }},
				{head: "NEEDS", cell: func(i drillInfo) string { return fmt.Sprintf("%dx%d", i.Cells, i.Servers) }},
				{head: "BREAKS", cell: func(i drillInfo) string { return fmt.Sprintf("%d", i.MaxCells) }},
				{head: "ABOUT", cell: func(i drillInfo) string { return i.About }},
			})
		}),
	}
}

func (a *app) drillLintCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "lint FILE...",
		Short:   "Check drills without running them",
		Example: "  cellvisor drill lint mine.star",
		Args:    args(1, -1, "a drill's file or name"),
		RunE: a.does(func(_ context.Context, names []string) error {
			problems := 0
			for _, name := range names {
				file, src, err := readDrill(name)
				if err != nil {
					return err
				}
				for _, p := range drill.Lint(file, src) {
					fmt.Fprintln(a.out, p)
					problems++
				}
			}
			if problems > 0 {
				return exitStatus(api.ExitError)
			}
			return nil
		}),
	}
}

// drillFlags are the options of `drill run`.
type drillFlags struct {
	up               bool
	cells, servers   int
	seed             uint64
	patience         int
	junit, html, dir string
	quiet            bool

	sim, keepGoing, trace bool
	seeds, canary         string
	jobs                  int
}

func (a *app) drillRunCmd() *cobra.Command {
	var f drillFlags
	cmd := &cobra.Command{
		Use:   "run FILE|NAME",
		Short: "Run a drill; exit code 0 if it passed",
		Long: `Runs a drill on the local cluster that "up" started, or with --up on one of its own, which is taken down at the end. Whatever the drill breaks is
healed at its end, when it fails and on Ctrl-C; if the runner itself dies, "drill heal" does it. Other clusters are refused: a drill kills
processes.

With --sim the same file runs on the simulator, in virtual time and without KVM, once for each seed: the code that decides is that of production, the
network, the disks, the processes and the guests are models. A failure prints the one command that replays it.`,
		Example: "  cellvisor drill run lose-a-cell --up\n  cellvisor drill run mine.star --seed 7 --html report.html --junit report.xml\n  cellvisor drill run lose-a-cell --sim --seeds 1..1000",
		Args:    args(1, 1, "a drill's file or name"),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !f.up && !f.sim && (f.cells != 0 || f.servers != 0):
				return usagef("--cells and --servers say what --up or --sim starts: add one of them")
			case f.patience < 1 || f.patience > 100:
				return usagef("--patience %d must be from 1 to 100", f.patience)
			}
			if err := f.simFlags(cmd.Flags().Changed("seed")); err != nil {
				return err
			}
			if !cmd.Flags().Changed("seed") {
				f.seed = uint64(rand.Uint32())
			}
			return nil
		},
		RunE: a.does(func(ctx context.Context, names []string) error { return a.drillRun(ctx, names[0], f) }),
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.up, "up", false, "start a cluster for this drill, and take it down at the end")
	fl.IntVar(&f.cells, "cells", 0, "with --up or --sim: number of cells (default: what the drill needs)")
	fl.IntVar(&f.servers, "servers", 0, "with --up or --sim: servers in each cell (default: what the drill needs)")
	fl.Uint64Var(&f.seed, "seed", 0, "of the drill's choices (default: another each time; the report says which)")
	fl.IntVar(&f.patience, "patience", 1, "factor on all deadlines of the drill, for slow machines")
	fl.StringVar(&f.junit, "junit", "", "write the report as JUnit XML to this file")
	fl.StringVar(&f.html, "html", "", "write the report as one HTML page to this file")
	fl.StringVar(&f.dir, "dir", "", "directory of the local cluster (default $CELLVISOR_DIR, else as for up)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "leave the steps out while it runs")
	fl.BoolVar(&f.sim, "sim", false, "run on the simulator, in virtual time")
	fl.StringVar(&f.seeds, "seeds", "", "with --sim: seeds, FIRST..LAST (default 1..100)")
	fl.StringVar(&f.canary, "canary", "", "with --sim: plant this bug, to see that it is found")
	fl.BoolVar(&f.keepGoing, "keep-going", false, "with --sim: do not stop at the first failure")
	fl.BoolVar(&f.trace, "trace", false, "with --sim: add the end of the world's story to the report of a failure")
	fl.IntVarP(&f.jobs, "jobs", "j", 0, "with --sim: worlds at a time (default: one for each CPU)")
	_ = cmd.RegisterFlagCompletionFunc("canary", cobra.FixedCompletions(rehearsal.Canaries(), cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = cobra.FixedCompletions(drills.Names(), cobra.ShellCompDirectiveDefault)
	return cmd
}

func (a *app) drillRun(ctx context.Context, name string, f drillFlags) error {
	file, src, err := readDrill(name)
	if err != nil {
		return err
	}
	p, err := drill.Load(file, src)
	if err != nil {
		return err
	}
	if f.sim {
		return a.drillSim(ctx, p, f)
	}
	var rep *drill.Report
	if f.up {
		rep, err = a.drillInside(ctx, p, f)
	} else {
		rep, err = a.drillHere(ctx, p, f)
	}
	if rep == nil {
		return err
	}
	return errors.Join(a.drillReport(rep, f), err)
}

// drillInside runs the drill on a cluster of its own.
func (a *app) drillInside(ctx context.Context, p *drill.Program, f drillFlags) (rep *drill.Report, err error) {
	dir, err := os.MkdirTemp("", "cvdrill-")
	if err != nil {
		return nil, err
	}
	if dir, err = local.Abs(dir); err != nil {
		return nil, err
	}
	defer func() {
		_, derr := local.Down(dir)
		if derr == nil {
			derr = local.Purge(dir)
		}
		err = errors.Join(err, derr)
	}()
	shape := local.Shape{Cells: p.Cells, PerCell: p.Servers, Drills: true}
	if f.cells > 0 {
		shape.Cells = f.cells
	}
	if f.servers > 0 {
		shape.PerCell = f.servers
	}
	s, err := local.Start(local.Options{Dir: dir, Shape: shape})
	if err != nil {
		return nil, err
	}
	lctx, cancel := context.WithTimeout(ctx, time.Duration(f.patience)*time.Minute)
	defer cancel()
	if err := s.WaitLive(lctx, func(int, int) {}); err != nil {
		return nil, err
	}
	return a.drillOn(ctx, p, s.Cluster, f)
}

// drillHere runs the drill on the local cluster that is there, and on no other.
func (a *app) drillHere(ctx context.Context, p *drill.Program, f drillFlags) (*drill.Report, error) {
	c, err := a.drillCluster(f.dir)
	if err != nil {
		return nil, err
	}
	return a.drillOn(ctx, p, c, f)
}

// drillCluster returns the local cluster. A cluster that --addr or CELLVISOR_ADDR names is refused unless it is that one.
func (a *app) drillCluster(flag string) (*local.Cluster, error) {
	dir, err := a.dir(flag)
	if err != nil {
		return nil, err
	}
	c, err := local.Load(dir)
	named := a.addr
	if named == "" && flag == "" {
		named = os.Getenv("CELLVISOR_ADDR")
	}
	if named != "" && (err != nil || !strings.Contains(","+c.Addrs()+",", ","+strings.Split(named, ",")[0]+",")) {
		return nil, fmt.Errorf("a drill kills processes: it runs on a local cluster that `cellvisor up` started, and %s is none; use --up", named)
	}
	if errors.Is(err, local.ErrNoCluster) {
		return nil, fmt.Errorf("there is no local cluster in %s: `cellvisor up` starts one, or use --up", dir)
	}
	return c, err
}

func (a *app) drillOn(ctx context.Context, p *drill.Program, c *local.Cluster, f drillFlags) (*drill.Report, error) {
	client, err := api.Dial(ctx, c.Addrs())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	opt := drill.Options{Seed: f.seed, Patience: f.patience}
	if !f.quiet {
		opt.Step = a.drillStep()
	}
	return drill.Run(ctx, p, drill.Connect(client, localHost{c}.addr), localHost{c}, opt)
}

// drillStep shows the steps of a drill as they happen.
func (a *app) drillStep() func(drill.Step) {
	paint := a.painter()
	return func(s drill.Step) {
		text := s.Text
		if s.Kind == "fault" {
			text = paint.red(text)
		}
		fmt.Fprintf(a.err, "%8.2f s  %-6s  %s\n", float64(s.AtMs)/1000, s.Kind, text)
	}
}

// drillFiles writes the report into the files that were asked for.
func (a *app) drillFiles(rep *drill.Report, f drillFlags) error {
	if rep == nil {
		if f.junit != "" || f.html != "" {
			fmt.Fprintln(a.err, "No report was written: no seed failed. A single one has a report, as --seeds 7 does.")
		}
		return nil
	}
	for _, out := range []struct {
		path  string
		write func(io.Writer) error
	}{{f.junit, rep.JUnit}, {f.html, rep.HTML}} {
		if out.path == "" {
			continue
		}
		file, err := os.Create(out.path)
		if err != nil {
			return err
		}
		if err := errors.Join(out.write(file), file.Close()); err != nil {
			return fmt.Errorf("writing %s: %w", out.path, err)
		}
	}
	return nil
}

// drillReport writes the report in all forms that were asked for, and turns the verdict into the exit code.
func (a *app) drillReport(rep *drill.Report, f drillFlags) error {
	err := a.drillFiles(rep, f)
	if err != nil {
		return err
	}
	switch a.format {
	case "json":
		err = a.json(rep)
	case "name":
		_, err = fmt.Fprintln(a.out, rep.Verdict)
	default:
		err = rep.Text(a.out, a.drillMark)
	}
	if err == nil && rep.Verdict != drill.Passed {
		return exitStatus(api.ExitError)
	}
	return err
}

func (a *app) drillMark(word string) string {
	paint := a.painter()
	switch word {
	case "ok", string(drill.Passed):
		return paint.green(word)
	}
	return paint.red(word)
}
