package tui

import (
	"context"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// Acts on places, cells or servers: cordon, drain, restore; and the operations that they start.

// planMsg brings the dry run of an operation, to be asked about.
type planMsg struct {
	line string
	req  *api.StartOperationRequest
	op   *api.Operation
	err  error
}

// placed fills in what the words of a command name.
func placed(noun string, names []string) (cells, servers []string) {
	if noun == "cell" {
		return names, nil
	}
	return nil, names
}

func cordon(noun string, on bool) func(*App, call) tea.Cmd {
	verb := "uncordon"
	if on {
		verb = "cordon"
	}
	return func(a *App, c call) tea.Cmd {
		cells, servers := placed(noun, c.args)
		line := noun + " " + verb + " " + quoteWords(c.args)
		do := func() tea.Cmd {
			return a.act(line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
				_, err := client.Cordon(ctx, &api.CordonRequest{Cells: cells, Servers: servers, On: on})
				return "done", err
			})
		}
		if !on {
			return do()
		}
		a.ask("Cordon "+noun+" "+strings.Join(c.args, ", ")+"?", line,
			[]string{"No new parts of VMs are placed there from now on. What runs there stays.", "uncordon takes it back."}, do)
		return nil
	}
}

// operator names who asks, for people.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// plan asks the cluster for the dry run of an operation; the answer opens a dialog that shows it.
func (a *App) plan(line string, req *api.StartOperationRequest) tea.Cmd {
	client, err := a.source.Client()
	if err != nil {
		a.say(theme.Bad, line+": "+err.Error())
		return nil
	}
	req.By = operator()
	a.say(theme.Plain, a.theme.Prompt+" cellvisor "+line+" --dry-run "+a.theme.Ellipsis)
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(a.ctx, actTimeout)
		defer cancel()
		req.DryRun = true
		r, err := client.StartOperation(ctx, req)
		return planMsg{line: line, req: req, op: r.GetOperation(), err: err}
	}
}

// onPlan shows a dry run and asks.
func (a *App) onPlan(m planMsg) {
	if m.err != nil {
		a.say(theme.Bad, fmt.Sprintf("%s cellvisor %s: %s", a.theme.Prompt, m.line, api.Message(m.err)))
		return
	}
	a.notice = notice{}
	a.ask(upperFirst(m.op.GetKind().Word())+" "+m.op.GetSubject()+"?", m.line, planLines(m.op), func() tea.Cmd {
		m.req.DryRun = false
		return a.act(m.line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
			r, err := client.StartOperation(ctx, m.req)
			if err != nil {
				return "", err
			}
			return "operation " + number(r.GetOperation().GetId()) + " is " + r.GetOperation().GetState().Word() + ", 7 shows it", nil
		})
	})
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// planLines lists the steps of a dry run.
func planLines(op *api.Operation) []string {
	p := progressOf(op)
	lines := []string{fmt.Sprintf("%s, at most %s to copy. The VMs run on meanwhile; each stands still for some milliseconds.", plural(p.steps, "step", "steps"), size(p.all))}
	if p.steps == 0 {
		lines = []string{"Nothing has to move."}
	}
	for _, s := range op.GetSteps() {
		to := s.GetTo()
		if to == "" {
			to = "where there is room"
		}
		line := fmt.Sprintf("VM %s: %s from %s to %s, %s", s.GetVm(), s.GetKind(), s.GetFrom(), to, size(s.GetBytes()))
		if s.GetNote() != "" {
			line += " (" + s.GetNote() + ")"
		}
		lines = append(lines, line)
	}
	if op.GetNote() != "" {
		lines = append(lines, "Blocked: "+op.GetNote())
	}
	return lines
}

// withFlags puts the flags of a call behind its line, as it was typed.
func withFlags(line string, c call, names ...string) string {
	for _, name := range names {
		if v, has := c.flags[name]; has {
			line += " --" + name + " " + quoteWord(v)
		}
	}
	return line
}

var drainFlags = map[string]bool{"deadline": true, "on-deadline": true, "max-parallel": true, "reason": true}

var restoreFlags = map[string]bool{"return": true, "reason": true}

func drain(noun string) func(*App, call) tea.Cmd {
	return func(a *App, c call) tea.Cmd {
		cells, servers := placed(noun, c.args)
		req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_DRAIN, Cells: cells, Servers: servers,
			OnDeadline: c.flags["on-deadline"], Reason: c.flags["reason"]}
		if s, has := c.flags["deadline"]; !has {
			req.DeadlineSeconds = 3600
		} else if s != "none" {
			d, err := time.ParseDuration(s)
			if err != nil || d < time.Second {
				a.say(theme.Bad, fmt.Sprintf("--deadline %q must be none or at least 1s, as in 90m", s))
				return nil
			}
			req.DeadlineSeconds = uint32(min(d.Seconds(), 1<<31))
		}
		if s, has := c.flags["max-parallel"]; has {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				a.say(theme.Bad, fmt.Sprintf("--max-parallel %q is not a number of VMs", s))
				return nil
			}
			req.MaxParallel = uint32(n)
		}
		return a.plan(withFlags(noun+" drain "+quoteWords(c.args), c, "deadline", "on-deadline", "max-parallel", "reason"), req)
	}
}

func restore(noun string) func(*App, call) tea.Cmd {
	return func(a *App, c call) tea.Cmd {
		cells, servers := placed(noun, c.args)
		return a.plan(withFlags(noun+" restore "+quoteWords(c.args), c, "return", "reason"), &api.StartOperationRequest{
			Kind: api.OperationKind_OPERATION_KIND_RESTORE, Cells: cells, Servers: servers, Return: c.flags["return"], Reason: c.flags["reason"]})
	}
}

func migrate(a *App, c call) tea.Cmd {
	to, from := c.flags["to"], c.flags["from"]
	if to == "" {
		a.say(theme.Bad, "--to is missing: name the server or cell that the VM is to go to")
		return nil
	}
	req := &api.StartOperationRequest{Kind: api.OperationKind_OPERATION_KIND_MIGRATE, Vm: c.args[0], MaxParallel: 1, Reason: c.flags["reason"]}
	if s := a.snapshot(); s.Cell(to) != nil {
		req.ToCell = to
	} else {
		req.ToServer = to
	}
	if from != "" {
		if a.snapshot().Cell(from) != nil {
			req.Cells = []string{from}
		} else {
			req.Servers = []string{from}
		}
	}
	return a.plan(withFlags("vm migrate "+quoteWord(c.args[0]), c, "to", "from", "reason"), req)
}

func protect(a *App, c call) tea.Cmd {
	line := "vm protect " + quoteWords(c.args)
	return a.act(line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
		r, err := client.ProtectVM(ctx, &api.ProtectVMRequest{Name: c.args[0], Protect: c.args[1]})
		return r.GetVm().GetProtection(), err
	})
}

func cancelOperation(a *App, c call) tea.Cmd {
	id, err := strconv.ParseUint(c.args[0], 10, 64)
	if err != nil {
		a.say(theme.Bad, fmt.Sprintf("%q is not the number of an operation", c.args[0]))
		return nil
	}
	line := "op cancel " + c.args[0]
	a.ask("Cancel operation "+c.args[0]+"?", line, []string{"What it has moved stays where it is. Steps that are under way come to nothing."}, func() tea.Cmd {
		return a.act(line, func(ctx context.Context, client api.CellvisorClient) (string, error) {
			r, err := client.CancelOperation(ctx, &api.CancelOperationRequest{Id: id, By: operator()})
			return r.GetOperation().GetState().Word(), err
		})
	})
	return nil
}

// safeToStop tells whether anything would notice.
func safeToStop(noun string) func(*App, call) tea.Cmd {
	return func(a *App, c call) tea.Cmd {
		cells, servers := placed(noun, c.args)
		return a.act(noun+" safe-to-stop "+quoteWords(c.args), func(ctx context.Context, client api.CellvisorClient) (string, error) {
			r, err := client.SafeToStop(ctx, &api.SafeToStopRequest{Cells: cells, Servers: servers})
			if err != nil || r.GetSafe() {
				return "yes", err
			}
			return "", fmt.Errorf("no: %s", strings.Join(r.GetDependents(), "; "))
		})
	}
}
