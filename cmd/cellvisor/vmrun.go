package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/wire"
)

// runFlags are the options of `vm run`.
type runFlags struct {
	payload, args, memory, onLoss string
	logMax                        string
	vcpus                         uint32
	weight                        int
	span                          []string
	wait                          bool
	timeout                       time.Duration
	options                       map[string]string
	protect                       string
	checkpoint                    time.Duration
	rebootOnCrash                 bool
	crashLimit                    uint32
	restart                       string
	linux                         linuxFlags
	disks                         []string
}

func (a *app) vmRunCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run NAME --payload FILE|BUILTIN | --kernel FILE",
		Short: "Create a VM and start it",
		Long: `Creates a VM and starts it. Without --wait it returns when the VM runs; with --wait when the VM has ended: exit code 0 if the guest ended with
status 0, else 1 and the reason. Ctrl-C before the VM runs takes it back; later it ends the watching only (exit code 5).

With --span, the VM's vCPUs and memory lie in these cells, at least one vCPU in each, and the VM depends on all of them. Without, the cluster
chooses one cell.
` + diskHelp + `

With --kernel, the guest is an unmodified Linux kernel, on one server. Files are sent to the cluster. It ends with status 0 when it is switched
off; a reset, a panic with panic=-1 and a triple fault start it again in place.

Built-in payloads:
` + builtinHelp(),
		Example: `  cellvisor vm run first --payload hello --wait
  cellvisor vm run alpha --payload lock --args 200000 --vcpus 4 --memory 64MiB --span a,b --wait
  cellvisor vm run mine --payload ./guest.elf --args "any words" --on-loss touch
  cellvisor vm run debian --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0 root=/dev/vda" --vcpus 2 --memory 1GiB`,
		Args: args(1, 1, "the name of one VM"),
		PreRunE: func(cmd *cobra.Command, names []string) error {
			if f.linux.kernel != "" && !cmd.Flags().Changed("memory") {
				f.memory = linuxMemory
			}
			if f.linux.kernel != "" && !cmd.Flags().Changed("crash-limit") {
				f.crashLimit = linuxCrashLimit
			}
			return f.check(names[0])
		},
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			return a.vmRun(ctx, c, names[0], f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.payload, "payload", "", "the guest: a static ELF64 file, or the name of a built-in payload")
	fl.StringVar(&f.args, "args", "", "argument string for the guest")
	fl.Uint32Var(&f.vcpus, "vcpus", 1, "number of vCPUs")
	fl.StringVar(&f.memory, "memory", "64MiB", "guest memory (default with --kernel "+linuxMemory+")")
	f.linux.register(cmd)
	fl.IntVar(&f.weight, "weight", gang.DefaultWeight, "share of time on the slots beside other VMs; each vCPU of a VM of weight 200 runs twice as long as one of weight 100")
	fl.StringSliceVar(&f.span, "span", nil, "cells that the VM lies in, separated by commas (default: one, chosen by the cluster)")
	fl.StringVar(&f.onLoss, "on-loss", "stop", "when a cell of the VM dies: stop it at once, or when it touches a lost page (stop|touch)")
	fl.StringVar(&f.protect, "protect", "none", "survive the loss of a cell, or of K, by replicas in other cells (none|replica|replica:K)")
	fl.DurationVar(&f.checkpoint, "checkpoint", 0, "time between checkpoints of a protected VM; output waits for one (default adaptive, 20ms to 200ms)")
	fl.BoolVar(&f.rebootOnCrash, "reboot-on-crash", true, "restart the guest in place when it crashes")
	fl.Uint32Var(&f.crashLimit, "crash-limit", cells.DefaultCrashLimit, "end the VM at so many crashes in a row, each within 10s of its boot (0 = no limit)")
	fl.StringArrayVar(&f.disks, "disk", nil, "a disk: FILE[,size=SIZE][,mirror=N][,cache=MODE][,readonly]; repeatable")
	fl.StringVar(&f.restart, "restart", cells.RestartNo, "start the VM again from its spec when it was lost, as after a loss of power (no|always)")
	fl.StringVar(&f.logMax, "log-max", "", "how long the console and the output log may each grow; then what is oldest is dropped (default 256MiB)")
	fl.BoolVar(&f.wait, "wait", false, "wait until the guest has ended")
	fl.DurationVar(&f.timeout, "timeout", 0, "longest wait; the VM goes on (exit code 4)")
	fl.StringToStringVar(&f.options, "option", nil, "setting for tests, NAME=VALUE")
	_ = fl.MarkHidden("option")
	_ = cmd.RegisterFlagCompletionFunc("span", a.completeCells())
	_ = cmd.RegisterFlagCompletionFunc("on-loss", cobra.FixedCompletions([]string{"stop", "touch"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{cells.RestartNo, cells.RestartAlways}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("payload", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return view.Map(payload.List(), func(i payload.Info) string { return i.Name }), cobra.ShellCompDirectiveDefault
	})
	return cmd
}

func builtinHelp() string {
	var b strings.Builder
	for _, i := range payload.List() {
		fmt.Fprintf(&b, "  %-7s %s\n", i.Name, i.Doc)
		if i.Args != "" {
			fmt.Fprintf(&b, "          --args %q: %s\n", i.Args, i.Help)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

var protectPattern = regexp.MustCompile(`^(none|replica(:[1-9][0-9]?)?)$`)

var vmNamePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// check finds what is wrong with the command line itself; what only the cluster can know is the cluster's to refuse.
func (f *runFlags) check(name string) error {
	switch {
	case !vmNamePattern.MatchString(name):
		return usagef("VM name %q must be 1 to 63 of a-z, 0-9 and '-', beginning with a letter", name)
	case f.payload == "" && f.linux.kernel == "":
		return usagef("--payload is missing: name a static ELF64 file or a built-in payload, or a Linux kernel by --kernel")
	case f.weight < 1 || f.weight > gang.MaxWeight:
		return usagef("--weight %d must be from 1 to %d", f.weight, gang.MaxWeight)
	case f.vcpus == 0:
		return usagef("--vcpus must be at least 1")
	case f.onLoss != "stop" && f.onLoss != "touch":
		return usagef("--on-loss %q must be stop or touch", f.onLoss)
	case f.restart != cells.RestartNo && f.restart != cells.RestartAlways:
		return usagef("--restart %q must be no or always", f.restart)
	case !protectPattern.MatchString(f.protect):
		return usagef("--protect %q must be none, replica or replica:K", f.protect)
	case f.checkpoint < 0 || f.checkpoint > 0 && f.checkpoint < time.Millisecond:
		return usagef("--checkpoint %v must be at least 1ms", f.checkpoint)
	case f.timeout < 0:
		return usagef("--timeout %v is negative", f.timeout)
	}
	if _, err := config.ParseSize(f.memory); err != nil {
		return usagef("--memory: %w", err)
	}
	if f.logMax != "" {
		if n, err := config.ParseSize(f.logMax); err != nil || n < wire.LogMaxLeast || n > wire.LogMaxMost {
			return usagef("--log-max %q must be a size from %s to %s, such as 64MiB", f.logMax, ident.Bytes(wire.LogMaxLeast), ident.Bytes(wire.LogMaxMost))
		}
	}
	if err := f.linux.check(f); err != nil {
		return err
	}
	for _, d := range f.disks {
		if _, err := parseDisk(d); err != nil {
			return err
		}
	}
	seen := make(map[string]bool)
	for _, cell := range f.span {
		if cell == "" || seen[cell] {
			return usagef("--span %s names a cell twice or not at all", strings.Join(f.span, ","))
		}
		seen[cell] = true
	}
	if n := len(f.span); uint64(n) > uint64(f.vcpus) {
		return usagef("--span %s needs --vcpus %d or more: each of its cells gets at least one vCPU", strings.Join(f.span, ","), n)
	}
	return nil
}

// spec turns the options into what the API takes, and opens the files that it names.
func (f *runFlags) spec(name string) (*api.VMSpec, []*os.File, error) {
	size, err := config.ParseSize(f.memory)
	if err != nil {
		return nil, nil, err
	}
	spec := &api.VMSpec{
		Name: name, Args: f.args, Vcpus: f.vcpus, MemoryBytes: uint64(size), Span: f.span,
		OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: f.protect, CheckpointMs: uint32(f.checkpoint.Milliseconds()), Options: f.options,
		RebootOnCrash: &f.rebootOnCrash, CrashLimit: &f.crashLimit, Restart: f.restart,
	}
	weight := int32(f.weight)
	spec.Weight = &weight
	if f.logMax != "" {
		if spec.Options == nil {
			spec.Options = map[string]string{}
		}
		spec.Options[wire.OptionLogMax] = f.logMax
	}
	for _, text := range f.disks {
		d, err := parseDisk(text)
		if err != nil {
			return nil, nil, err
		}
		spec.Disks = append(spec.Disks, d)
	}
	if f.onLoss == "touch" {
		spec.OnLoss = api.OnLoss_ON_LOSS_TOUCH
	}
	if f.linux.kernel != "" {
		files, err := f.linux.open(spec)
		return spec, files, err
	}
	if _, ok := payload.Lookup(f.payload); ok {
		spec.Payload = &api.VMSpec_Builtin{Builtin: f.payload}
		return spec, nil, nil
	}
	if _, err := os.Stat(f.payload); errors.Is(err, os.ErrNotExist) {
		names := view.Map(payload.List(), func(i payload.Info) string { return i.Name })
		return nil, nil, fmt.Errorf("payload %q is neither a file nor built in (%s)", f.payload, strings.Join(names, ", "))
	}
	file, err := openRegular(f.payload)
	if err != nil {
		return nil, nil, err
	}
	return spec, []*os.File{file}, nil
}

func openRegular(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		file.Close()
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return file, nil
}

func (a *app) vmRun(ctx context.Context, c *api.Client, name string, f runFlags) error {
	spec, files, err := f.spec(name)
	if err != nil {
		return err
	}
	var readers []io.ReadSeeker
	for _, file := range files {
		defer file.Close()
		readers = append(readers, file)
	}
	p := a.progress()
	defer p.done()
	p.say("creating VM %s", name)
	created, err := c.Run(ctx, spec, readers...)
	if err != nil {
		return whyRefused(ctx, c, err)
	}
	a.noteFewCells(ctx, c, spec)
	wctx, cancel := withTimeout(ctx, f.timeout)
	defer cancel()
	v, err := c.Wait(wctx, name, created.GetId(), api.WaitVMRequest_UNTIL_STARTED, func(v *api.VM) { p.say("VM %s is %s", name, v.GetState().Word()) })
	if err != nil {
		if ctx.Err() != nil {
			return takeBack(c, created)
		}
		return waitError(name, err)
	}
	if f.wait && !v.GetState().Ended() {
		if v, err = a.waitEnd(ctx, wctx, c, v, p); err != nil {
			return err
		}
	}
	p.done()
	return a.finish(v, f.wait)
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// takeBack removes a VM whose start was interrupted, and says so; one that got to run before that was heard of goes on. The caller's context has
// ended, so it has one of its own.
func takeBack(c *api.Client, created *api.VM) error {
	name := created.GetName()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if v, err := getVM(ctx, c, name); err == nil && v.GetId() == created.GetId() && v.GetState() == api.VMState_VM_STATE_RUNNING {
		return api.Detached{Operation: fmt.Sprintf("VM %s", name)}
	}
	_ = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: true})
		return err
	})
	return fmt.Errorf("interrupted while VM %s was starting; it was removed", name)
}

// waitOver says that somebody's patience ended before the VM did.
type waitOver struct{ name string }

func (w waitOver) Error() string { return fmt.Sprintf("VM %s goes on, the wait is over", w.name) }
func (w waitOver) Unwrap() error { return context.DeadlineExceeded }

func waitError(name string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return waitOver{name}
	}
	return err
}

// waitEnd waits for the end of a running VM. An interrupted watcher leaves the VM alone.
func (a *app) waitEnd(ctx, wctx context.Context, c *api.Client, v *api.VM, p *progress) (*api.VM, error) {
	name := v.GetName()
	p.say("VM %s is running on %s", name, strings.Join(v.GetCells(), ","))
	last, err := c.Wait(wctx, name, v.GetId(), api.WaitVMRequest_UNTIL_ENDED, func(v *api.VM) { p.say("VM %s is %s", name, v.GetState().Word()) })
	if err == nil {
		return last, nil
	}
	p.done()
	if ctx.Err() != nil {
		return nil, api.Detached{Operation: fmt.Sprintf("VM %s", name)}
	}
	return nil, waitError(name, err)
}

// finish prints the VM's name and turns a bad end into an error. Without waiting, only a VM that never ran is one.
func (a *app) finish(v *api.VM, waited bool) error {
	switch {
	case a.format == "json":
		if err := a.json(view.OfVM(v)); err != nil {
			return err
		}
	case a.format == "name" || !waited:
		fmt.Fprintln(a.out, v.GetName())
	}
	name, state := v.GetName(), v.GetState()
	switch {
	case state == api.VMState_VM_STATE_EXITED && (v.GetExitStatus() == 0 || !waited):
		return nil
	case state == api.VMState_VM_STATE_EXITED:
		return fmt.Errorf("VM %s ended with status %d; `cellvisor vm console %s` shows what it printed", name, v.GetExitStatus(), name)
	case state.Ended() && (waited || state != api.VMState_VM_STATE_STOPPED):
		text := fmt.Sprintf("VM %s is %s: %s", name, state.Word(), dash(v.GetReason()))
		if regs := strings.TrimRight(v.GetRegisters(), "\n"); regs != "" {
			text += "\n" + regs
		}
		return errors.New(text)
	}
	return nil
}

func (a *app) vmWaitCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "wait NAME",
		Short:             "Wait until a VM has ended; exit code as for run --wait",
		Example:           "  cellvisor vm wait alpha --timeout 1m",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_STARTING, api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			v, err := getVM(ctx, c, names[0])
			if err != nil {
				return err
			}
			wctx, cancel := withTimeout(ctx, timeout)
			defer cancel()
			p := a.progress()
			defer p.done()
			if !v.GetState().Ended() {
				if v, err = a.waitEnd(ctx, wctx, c, v, p); err != nil {
					return err
				}
			}
			p.done()
			return a.finish(v, true)
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "longest wait (exit code 4)")
	return cmd
}
