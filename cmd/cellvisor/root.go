package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/local"
)

// app is what all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	addr     string
	context  string
	tls      config.TLS
	format   string
	ran      bool // a command's own code began: errors from here on are not the command line's
}

// flagError says what is wrong with a flag, without the words of the library that found it.
func flagError(err error) error {
	flag, why, ok := strings.Cut(err.Error(), ": strconv.")
	switch {
	case !ok:
		return usageError{err}
	case strings.HasPrefix(why, "ParseBool"):
		why = "say true or false"
	case strings.HasSuffix(why, "out of range"):
		why = "that number is too large, or below 0"
	default:
		why = "that is no whole number, or it is below 0"
	}
	return usagef("%s: %s", flag, why)
}

// usageError says that the command line is wrong.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitStatus ends the program with a status of its own, without a message: the command has said all.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// run is main without the process: it returns the exit code.
func run(args []string, in io.Reader, out, errw io.Writer) int {
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := root.ExecuteContextC(ctx)
	return a.exit(cmd, err)
}

// exit says what went wrong and maps it to the exit code.
func (a *app) exit(cmd *cobra.Command, err error) int {
	var status exitStatus
	var usage usageError
	switch {
	case err == nil:
		return api.ExitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage) || !a.ran:
		fmt.Fprintf(a.err, "cellvisor: %s\nSee `%s --help`.\n", err, cmd.CommandPath())
		return api.ExitUsage
	}
	fmt.Fprintf(a.err, "cellvisor: %s\n", api.Message(err))
	return api.ExitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "cellvisor",
		Short: "Virtual machines over cells of servers, with failures contained",
		Long: `Cellvisor runs virtual machines on clusters of Linux/KVM servers. Servers are grouped in cells, the unit of fault containment; a VM may span
several servers and cells as one machine with one coherent memory. When a cell fails, only the VMs that depended on it are touched.`,
		Example: `  cellvisor up                                  # a cluster of three cells on this machine, until Ctrl-C
  cellvisor vm run first --payload hello --vcpus 4 --span a,b --wait
  cellvisor vm console first
  cellvisor status`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.checkFormat()
		},
		RunE: a.needsVerb,
		Args: cobra.ArbitraryArgs,
	}
	root.PersistentFlags().StringVar(&a.addr, "addr", "", "cluster to talk to: unix:///PATH or HOST:PORT, several separated by commas (default $CELLVISOR_ADDR, else the local cluster)")
	root.PersistentFlags().StringVar(&a.context, "context", "", "file that names a cluster's address and your certificate (default $CELLVISOR_CONTEXT)")
	root.PersistentFlags().StringVar(&a.tls.CA, "ca", "", "authorities to trust, for an --addr on TCP (default $CELLVISOR_CA)")
	root.PersistentFlags().StringVar(&a.tls.Cert, "cert", "", "your certificate, for an --addr on TCP (default $CELLVISOR_CERT)")
	root.PersistentFlags().StringVar(&a.tls.Key, "key", "", "your private key, for an --addr on TCP (default $CELLVISOR_KEY)")
	root.PersistentFlags().StringVarP(&a.format, "output", "o", "table", "output format: table, wide, json or name")
	root.AddGroup(&cobra.Group{ID: "use", Title: "Using a cluster:"}, &cobra.Group{ID: "run", Title: "Running a cluster:"},
		&cobra.Group{ID: "try", Title: "Trying and measuring:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("use", a.statusCmd(), a.cellCmd(), a.serverCmd(), a.vmCmd(), a.diskCmd(), a.opCmd(), a.balanceCmd(), a.eventsCmd(), a.topCmd())
	add("run", a.upCmd(), a.downCmd(), a.serveCmd(), a.caCmd(), a.auditCmd(), a.doctorCmd(), a.debugCmd())
	add("try", a.demoCmd(), a.drillCmd(), a.simCmd(), a.benchCmd())
	root.AddCommand(a.workerCmd(), a.manualCmd(), a.versionCmd())
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	return root
}

// noun makes a command that only groups others.
func (a *app) noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: a.needsVerb, Args: cobra.ArbitraryArgs}
	c.AddCommand(verbs...)
	return c
}

// needsVerb runs for a noun without a verb it knows.
func (a *app) needsVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		_ = cmd.Help()
		return exitStatus(api.ExitUsage)
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return usagef("%q has no command %q%s", cmd.CommandPath(), args[0], hint)
}

// does wraps a command's own code: what fails in it is not the command line's fault.
func (a *app) does(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.ran = true
		return f(cmd.Context(), args)
	}
}

// withClient wraps code that talks to the cluster.
func (a *app) withClient(f func(ctx context.Context, c *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.does(func(ctx context.Context, args []string) error {
		c, err := a.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if alone := c.Alone(); alone != "" {
			fmt.Fprintf(a.err, "cellvisor: no server that answers has contact with a quorum; this is what %s last knew\n", alone)
		}
		return f(ctx, c, args)
	})
}

// follows is withClient for what goes on until Ctrl-C, which is its normal end at any moment, that of connecting included.
func (a *app) follows(f func(ctx context.Context, c *api.Client, args []string) error) func(*cobra.Command, []string) error {
	run := a.withClient(f)
	return func(cmd *cobra.Command, args []string) error { return ended(cmd.Context(), run(cmd, args)) }
}

// dir returns the local cluster's directory: the flag's value, CELLVISOR_DIR, or the default.
func (a *app) dir(flag string) (string, error) {
	if flag == "" {
		flag = os.Getenv("CELLVISOR_DIR")
	}
	if flag == "" {
		flag = local.DefaultDir()
	}
	return local.Abs(flag)
}

// args returns a validator that makes a wrong number of arguments a usage error which names what is wanted.
func args(low, high int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < low:
			return usagef("%q needs %s", cmd.CommandPath(), names)
		case high >= 0 && len(got) > high && high == 0:
			return usagef("%q takes no arguments, got %s", cmd.CommandPath(), strings.Join(got, " "))
		case high >= 0 && len(got) > high:
			return usagef("%q takes %s, got %s", cmd.CommandPath(), names, strings.Join(got, " "))
		}
		return nil
	}
}
