package tui

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// actTimeout bounds an act. StopVM answers only when the vCPUs are known to stand still, which may take a new view.
const actTimeout = 30 * time.Second

// act runs a call that changes the cluster, and tells how it ended.
func (a *App) act(line string, do func(context.Context, api.CellvisorClient) (string, error)) tea.Cmd {
	client, err := a.source.Client()
	if err != nil {
		a.say(theme.Bad, line+": "+err.Error())
		return nil
	}
	a.acting++
	a.say(theme.Plain, a.theme.Prompt+" cellvisor "+line+" "+a.theme.Ellipsis)
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(a.ctx, actTimeout)
		defer cancel()
		began := time.Now()
		outcome, err := do(ctx, client)
		n := notice{text: fmt.Sprintf("%s cellvisor %s: %s (%s)", a.theme.Prompt, line, outcome, span(time.Since(began))), role: theme.Good}
		if err != nil {
			n = notice{text: fmt.Sprintf("%s cellvisor %s: %s", a.theme.Prompt, line, api.Message(err)), role: theme.Bad}
		}
		return noticeMsg{notice: n, act: true}
	}
}

// quoteWord quotes a word for the shell if need be.
func quoteWord(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n'\"\\$`&|;<>()*?[]{}#~!") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// planned says what an act will do to each of the named VMs.
func (a *App) planned(names []string, of func(*api.VM) []string) []string {
	var plan []string
	for _, name := range names {
		lead := ""
		if len(names) > 1 {
			lead = name + ": "
		}
		vm := a.snapshot().VM(name)
		if vm == nil {
			plan = append(plan, fmt.Sprintf("There is no VM %q in what was last seen of the cluster.", name))
			continue
		}
		for i, text := range of(vm) {
			if i == 0 {
				text = lead + text
			}
			plan = append(plan, text)
		}
	}
	return plan
}

func quoteWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteWord(w)
	}
	return strings.Join(quoted, " ")
}

func askStop(a *App, c call) tea.Cmd {
	line := "vm stop " + quoteWords(c.args)
	plan := a.planned(c.args, func(vm *api.VM) []string {
		if vm.GetState().Ended() {
			return []string{fmt.Sprintf("It has ended already (%s): nothing changes.", vm.GetState().Word())}
		}
		return []string{stopPlan(vm)}
	})
	plan = append(plan, "Console and output stay until vm rm. A stopped VM cannot be started again.")
	a.ask("Stop VM "+strings.Join(c.args, ", ")+"?", line, plan, func() tea.Cmd {
		return a.act(line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
			word := ""
			for _, name := range c.args {
				r, err := client.StopVM(ctx, &api.StopVMRequest{Name: name})
				if err != nil {
					return "", err
				}
				word = r.GetVm().GetState().Word()
			}
			return word, nil
		})
	})
	return nil
}

// stopPlan says what stops.
func stopPlan(vm *api.VM) string {
	var parts []string
	for _, w := range vm.GetWorkers() {
		if len(w.GetVcpus()) > 0 { // a replica's have none
			parts = append(parts, w.GetServer()+" (vCPU "+vcpuSet(w.GetVcpus())+")")
		}
	}
	where := ""
	if len(parts) > 0 {
		where = " on " + strings.Join(parts, ", ")
	}
	return fmt.Sprintf("It is %s. Its %s now%s, and %s of memory are freed.", vm.GetState().Word(),
		plural(int(vm.GetVcpus()), "vCPU stops", "vCPUs stop"), where, size(vm.GetMemoryBytes()))
}

func askRemove(a *App, c call) tea.Cmd {
	line := "vm rm " + quoteWords(c.args)
	_, force := c.flags["force"]
	if _, short := c.flags["f"]; short {
		force = true
	}
	if force {
		line += " --force"
	}
	plan := a.planned(c.args, func(vm *api.VM) []string { return removePlan(vm, force) })
	a.ask("Remove VM "+strings.Join(c.args, ", ")+"?", line, plan, func() tea.Cmd {
		return a.act(line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
			for _, name := range c.args {
				if _, err := client.RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: force}); err != nil {
					return "", err
				}
			}
			return "removed", nil
		})
	})
	return nil
}

// removePlan says what is deleted, and what stops for it.
func removePlan(vm *api.VM, force bool) []string {
	var plan []string
	switch {
	case !vm.GetState().Ended() && force:
		plan = append(plan, stopPlan(vm))
	case !vm.GetState().Ended():
		plan = append(plan, fmt.Sprintf("It is %s: this will be refused without --force.", vm.GetState().Word()))
	}
	return append(plan, "Its console and its output are deleted. This cannot be undone.")
}

func runVM(a *App, c call) tea.Cmd {
	spec, err := specOf(c)
	if err != nil {
		a.say(theme.Bad, "vm run: "+err.Error())
		return nil
	}
	return a.act("vm run "+quoteWord(spec.GetName()), func(ctx context.Context, client api.CellvisorClient) (string, error) {
		stream, err := client.RunVM(ctx)
		if err != nil {
			return "", err
		}
		// When the server has refused already, Send fails with io.EOF and CloseAndRecv tells why.
		_ = stream.Send(&api.RunVMRequest{Part: &api.RunVMRequest_Spec{Spec: spec}})
		r, err := stream.CloseAndRecv()
		return r.GetVm().GetState().Word() + " in " + strings.Join(r.GetVm().GetCells(), ", "), err
	})
}

// specOf reads the flags of vm run. Payload files are for the CLI: the console sends no files.
func specOf(c call) (*api.VMSpec, error) {
	payload := c.flags["payload"]
	if payload == "" {
		return nil, fmt.Errorf("--payload is missing; usage: vm run %s", c.verb.usage)
	}
	if strings.ContainsAny(payload, "/.") {
		return nil, fmt.Errorf("%q is a file; the console starts built-in payloads only, run this line in a shell", payload)
	}
	spec := &api.VMSpec{
		Name: c.args[0], Payload: &api.VMSpec_Builtin{Builtin: payload}, Args: c.flags["args"],
		Vcpus: defaultVCPUs, MemoryBytes: defaultMemoryBytes, OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none",
	}
	if s, has := c.flags["vcpus"]; has {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("--vcpus %q is not a number of vCPUs", s)
		}
		spec.Vcpus = uint32(n)
	}
	if s, has := c.flags["memory"]; has {
		n, err := parseSize(s)
		if err != nil {
			return nil, err
		}
		spec.MemoryBytes = n
	}
	if s := c.flags["span"]; s != "" {
		spec.Span = strings.Split(s, ",")
	}
	switch s := c.flags["on-loss"]; s {
	case "", "stop":
	case "touch":
		spec.OnLoss = api.OnLoss_ON_LOSS_TOUCH
	default:
		return nil, fmt.Errorf("--on-loss is stop or touch, not %q", s)
	}
	return spec, nil
}

// What vm run takes when it is not told, as the command line does.
const (
	defaultVCPUs       = 1
	defaultMemoryBytes = 64 << 20
)

// parseSize reads "512", "64M", "64MiB", "2G": units are powers of 1024.
func parseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "KMGTiBkmgtb ")
	n, err := strconv.ParseUint(digits, 10, 63)
	unit := strings.ToUpper(strings.TrimSpace(s[len(digits):]))
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	shift := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	bits, known := shift[unit]
	if err != nil || !known || n > 1<<(62-bits) {
		return 0, fmt.Errorf("%q is not a size such as 64MiB or 2G", s)
	}
	return n << bits, nil
}
