package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
)

// consoleLine is a line of `vm console -o json`.
type consoleLine struct {
	Offset uint64 `json:"offset"`
	Text   string `json:"text"`
}

// outputLine is a line of `vm output -o json`.
type outputLine struct {
	Index uint64 `json:"index"`
	Value uint32 `json:"value"`
}

// jsonConsole writes console bytes as JSON lines.
type jsonConsole struct {
	a      *app
	offset uint64
}

func (j *jsonConsole) Write(p []byte) (int, error) {
	err := j.a.jsonLine(consoleLine{Offset: j.offset, Text: string(p)})
	j.offset += uint64(len(p))
	return len(p), err
}

// Skip implements api.Skipper.
func (j *jsonConsole) Skip(from, to uint64) error {
	j.offset = to
	return j.a.skipped(from, to, "bytes of the console")
}

// plainConsole writes console bytes as they are.
type plainConsole struct {
	a *app
	io.Writer
}

// Skip implements api.Skipper.
func (p plainConsole) Skip(from, to uint64) error {
	return p.a.skipped(from, to, "bytes of the console")
}

// skipped tells, beside what is printed, that something was dropped.
func (a *app) skipped(from, to uint64, what string) error {
	_, err := fmt.Fprintf(a.err, "cellvisor: %d %s, from %d on, are not kept any more: the log has reached its bound (vm run --log-max)\n", to-from, what, from)
	return err
}

// logLine says how long a log is.
func logLine(length, dropped uint64, unit string) string {
	if dropped == 0 {
		return fmt.Sprintf("%d %s", length, unit)
	}
	return fmt.Sprintf("%d %s, of which the first %d are not kept any more", length, unit, dropped)
}

// consoleFlags are the options of `vm console`.
type consoleFlags struct {
	tail, attach, print bool
	offset              uint64
	offsetGiven         bool
	until               string
	timeout             time.Duration
}

func (a *app) vmConsoleCmd() *cobra.Command {
	var f consoleFlags
	cmd := &cobra.Command{
		Use:   "console NAME",
		Short: "Attach to a Linux guest's console, or print what a guest wrote to it",
		Long: `At a terminal, attaches to the serial console of a running Linux guest: what is typed goes there, Ctrl-] detaches. Otherwise, and for
payloads, prints what the guest wrote so far.

With --attach, standard input need not be a terminal: what is piped in is typed, and the console printed until the VM has ended or, with
--until, until the guest has printed a text.`,
		Example: `  cellvisor vm console debian
  cellvisor vm console alpha --follow
  echo "uname -r; echo DO''NE" | cellvisor vm console debian --attach --until DONE --timeout 1m`,
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			f.offsetGiven = cmd.Flags().Changed("offset")
			switch {
			case f.attach && (f.tail || f.print || a.format == "json"):
				return usagef("--attach prints the console as it is and goes on: leave --follow, --print and -o json away")
			case !f.attach && (f.until != "" || f.timeout != 0):
				return usagef("--until and --timeout need --attach")
			}
			return nil
		},
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			return a.console(ctx, c, names[0], f)
		}),
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.tail, "follow", "f", false, "print, and go on until the VM has ended")
	fl.BoolVar(&f.print, "print", false, "print, at a terminal too")
	fl.BoolVar(&f.attach, "attach", false, "attach, without a terminal too")
	fl.Uint64Var(&f.offset, "offset", 0, "bytes to skip (default with --attach: all but the last)")
	fl.StringVar(&f.until, "until", "", "with --attach: detach once the guest has printed this")
	fl.DurationVar(&f.timeout, "timeout", 0, "with --attach: detach after so long (exit code 4)")
	return cmd
}

// console attaches if that was asked for, or if someone sits at a terminal and the guest takes input.
func (a *app) console(ctx context.Context, c *api.Client, name string, f consoleFlags) error {
	if f.attach || !f.print && !f.tail && a.format != "json" && isTerminal(a.in) && isTerminal(a.out) {
		v, err := getVM(ctx, c, name)
		switch {
		case err != nil:
			return err
		case v.GetLinux() != nil && !v.GetState().Ended():
			return a.attach(ctx, c, v, f)
		case f.attach:
			return fmt.Errorf("VM %s takes no input: it is %s and runs %s; --attach is for a Linux guest that runs", name, v.GetState().Word(), shortPayload(v.GetPayload()))
		}
	}
	if a.format == "json" {
		return ended(ctx, c.Console(ctx, name, f.offset, f.tail, &jsonConsole{a, f.offset}))
	}
	return ended(ctx, c.Console(ctx, name, f.offset, f.tail, plainConsole{a, a.out}))
}

func (a *app) vmOutputCmd() *cobra.Command {
	var tail bool
	var index uint64
	cmd := &cobra.Command{
		Use:               "output NAME",
		Short:             "Print the guest's output records, one decimal number a line",
		Example:           "  cellvisor vm output gamma\n  cellvisor vm output gamma --follow --index 1000",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(),
		RunE: a.follows(func(ctx context.Context, c *api.Client, names []string) error {
			out := bufio.NewWriterSize(a.out, 64<<10)
			defer out.Flush()
			var line []byte
			next := index
			return c.Output(ctx, names[0], index, tail, func(at uint64, record uint32) error {
				if at > next {
					if err := a.skipped(next, at, "records"); err != nil {
						return err
					}
				}
				next = at + 1
				if a.format == "json" {
					return a.jsonLine(outputLine{at, record})
				}
				line = append(strconv.AppendUint(line[:0], uint64(record), 10), '\n')
				if _, err := out.Write(line); err != nil || !tail {
					return err
				}
				return out.Flush()
			})
		}),
	}
	cmd.Flags().BoolVarP(&tail, "follow", "f", false, "go on until the VM has ended")
	cmd.Flags().Uint64Var(&index, "index", 0, "records to skip")
	return cmd
}

// ended takes Ctrl-C as the normal end of something that follows.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
