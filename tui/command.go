package tui

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// call is a parsed command line.
type call struct {
	verb  *verb
	args  []string
	flags map[string]string
}

// verb is one command of the CLI's grammar that the console knows.
type verb struct {
	// path are the words that name it: "vm stop".
	path string
	// usage follows the path, help says what it does here.
	usage, help string
	// args is the number of arguments that it must have, more the number of those that it may have beyond.
	args, more int
	// of says what the arguments name, for completion.
	of kind
	// flags that it takes; true for those with a value.
	flags map[string]bool
	// acts marks what changes the cluster.
	acts bool
	run  func(*App, call) tea.Cmd
}

// namesMax bounds the things named in one command.
const namesMax = 64

// verbs is filled in by init since help, which is one of them, lists them.
var verbs []verb

func init() {
	follow := map[string]bool{"follow": false, "f": false}
	verbs = []verb{
		{path: "status", help: "the overview", run: func(a *App, _ call) tea.Cmd { a.popAll(); return nil }},
		{path: "cell ls", help: "all cells", run: open(newCells)},
		{path: "cell show", usage: "CELL", args: 1, of: aCell, help: "a cell, its servers, and the VMs that depend on it ", run: showDetail(aCell, newCellDetail)},
		{path: "server ls", help: "all servers", run: open(newServers)},
		{path: "server show", usage: "SERVER", args: 1, of: aServer, help: "a server, its VMs, events and counters", run: showDetail(aServer, newServerDetail)},
		{path: "vm ls", help: "all VMs", run: open(newVMs)},
		{path: "vm show", usage: "NAME", args: 1, of: aVM, help: "a VM, its parts and their counters, its events", run: showDetail(aVM, newVMDetail)},
		{path: "vm console", usage: "NAME [--follow]", args: 1, of: aVM, flags: follow, help: "what the guest prints", run: showLog(feed.Console)},
		{path: "vm output", usage: "NAME [--follow]", args: 1, of: aVM, flags: follow, help: "the guest's output records", run: showLog(feed.Output)},
		{path: "vm stop", usage: "NAME...", args: 1, more: namesMax, of: aVM, acts: true, help: "end VMs; asks first", run: askStop},
		{path: "vm rm", usage: "NAME... [--force]", args: 1, more: namesMax, of: aVM, acts: true,
			flags: map[string]bool{"force": false, "f": false}, help: "forget ended VMs and their logs; asks first", run: askRemove},
		{path: "cell load", help: "the load tree: the cluster, its cells, their servers", run: open(newLoadTree)},
		{path: "cell cordon", usage: "CELL...", args: 1, more: namesMax, of: aCell, acts: true, help: "keep new VM parts off; asks first", run: cordon("cell", true)},
		{path: "cell uncordon", usage: "CELL...", args: 1, more: namesMax, of: aCell, acts: true, help: "let new VM parts on again", run: cordon("cell", false)},
		{path: "cell drain", usage: "CELL... [--deadline 1h|none] [--on-deadline fail|stop] [--max-parallel N] [--reason S]", args: 1, more: namesMax, of: aCell, acts: true,
			flags: drainFlags, help: "move everything away; shows its dry run and asks", run: drain("cell")},
		{path: "cell restore", usage: "CELL... [--return none|original|balance]", args: 1, more: namesMax, of: aCell, acts: true,
			flags: restoreFlags, help: "let VMs on again after a drain; shows its dry run and asks", run: restore("cell")},
		{path: "cell safe-to-stop", usage: "CELL...", args: 1, more: namesMax, of: aCell, help: "would anything notice if it were off", run: safeToStop("cell")},
		{path: "server cordon", usage: "SERVER...", args: 1, more: namesMax, of: aServer, acts: true, help: "as for cells", run: cordon("server", true)},
		{path: "server uncordon", usage: "SERVER...", args: 1, more: namesMax, of: aServer, acts: true, help: "as for cells", run: cordon("server", false)},
		{path: "server drain", usage: "SERVER...", args: 1, more: namesMax, of: aServer, acts: true, flags: drainFlags, help: "as for cells", run: drain("server")},
		{path: "server restore", usage: "SERVER...", args: 1, more: namesMax, of: aServer, acts: true, flags: restoreFlags, help: "as for cells", run: restore("server")},
		{path: "server safe-to-stop", usage: "SERVER...", args: 1, more: namesMax, of: aServer, help: "as for cells", run: safeToStop("server")},
		{path: "server slices", usage: "SERVER", args: 1, of: aServer, help: "who ran when on it, gangs as such", run: showDetail(aServer, newSlices)},
		{path: "vm pages", usage: "NAME", args: 1, of: aVM, help: "which part holds which pages", run: showDetail(aVM, newPageMap)},
		{path: "vm migrate", usage: "NAME --to SERVER|CELL [--from SERVER|CELL]", args: 1, of: aVM, acts: true,
			flags: map[string]bool{"to": true, "from": true, "reason": true}, help: "move it while it runs; shows its dry run and asks", run: migrate},
		{path: "vm protect", usage: "NAME none|replica|replica:K", args: 2, of: aVM, acts: true, help: "change its protection", run: protect},
		{path: "op ls", help: "operations and their progress", run: open(newOperations)},
		{path: "op show", usage: "ID", args: 1, of: anOperation, help: "an operation, step by step", run: showDetail(anOperation, newOperationDetail)},
		{path: "op watch", usage: "ID", args: 1, of: anOperation, help: "the same", run: showDetail(anOperation, newOperationDetail)},
		{path: "op cancel", usage: "ID", args: 1, of: anOperation, acts: true, help: "end it; asks first", run: cancelOperation},
		{path: "drill ls", help: "ready drills, and the runs of this console", run: open(newDrills)},
		{path: "drill run", usage: "NAME [--up] [--seed N]", args: 1, of: aDrill, acts: true, help: "run a drill; asks first", run: askDrill,
			flags: map[string]bool{"up": false, "seed": true, "patience": true, "html": true, "junit": true}},
		{path: "vm run", usage: "NAME --payload BUILTIN [--args S] [--vcpus N] [--memory SIZE] [--span CELL,CELL] [--on-loss stop|touch]",
			args: 1, acts: true, help: "create and start a VM", run: runVM,
			flags: map[string]bool{"payload": true, "args": true, "vcpus": true, "memory": true, "span": true, "on-loss": true}},
		{path: "events", usage: "[--follow] [/FILTER]", more: 8, flags: follow, help: "what happened", run: showEvents},
		{path: "recoveries", help: "what was lost, and the time line of each recovery (console only)", run: open(newRecoveries)},
		{path: "run", usage: "N", args: 1, of: aRun, help: "the output of a run of this console (console only)", run: func(a *App, c call) tea.Cmd {
			n, err := strconv.Atoi(c.args[0])
			if err != nil {
				n = -1
			}
			return a.showRun(n)
		}},
		{path: "interrupt", usage: "N", args: 1, of: aRun, acts: true, help: "interrupt a run, as Ctrl-C does (console only)", run: interrupt},
		{path: "help", help: "keys and commands", run: func(a *App, _ call) tea.Cmd { return a.goTo(newHelp(a)) }},
		{path: "quit", help: "leave the console", run: func(*App, call) tea.Cmd { return tea.Quit }},
		{path: "q", help: "leave the console", run: func(*App, call) tea.Cmd { return tea.Quit }},
	}
}

func open(make func(*App) *screen) func(*App, call) tea.Cmd {
	return func(a *App, _ call) tea.Cmd {
		a.popAll()
		return a.push(make(a))
	}
}

// showEvents opens all events, or those that have to do with something above the screen that shows it.
func showEvents(a *App, c call) tea.Cmd {
	filter := strings.TrimPrefix(strings.Join(c.args, " "), "/")
	if filter == "" {
		a.popAll()
	}
	return a.goTo(newEvents(a, filter))
}

// showDetail opens the detail of a thing that exists.
func showDetail(k kind, make func(*App, string) *screen) func(*App, call) tea.Cmd {
	return func(a *App, c call) tea.Cmd {
		if !a.exists(target{k, c.args[0]}) {
			a.say(theme.Bad, fmt.Sprintf("there is no %s %q", [...]string{aCell: "cell", aServer: "server", aVM: "VM", anOperation: "operation"}[k], c.args[0]))
			return nil
		}
		return a.goTo(make(a, c.args[0]))
	}
}

func showLog(log feed.Log) func(*App, call) tea.Cmd {
	return func(a *App, c call) tea.Cmd {
		if !a.exists(target{aVM, c.args[0]}) {
			a.say(theme.Bad, fmt.Sprintf("there is no VM %q", c.args[0]))
			return nil
		}
		return a.goTo(newLog(a, c.args[0], log))
	}
}

func (a *App) exists(t target) bool {
	s := a.snapshot()
	switch t.kind {
	case aCell:
		return s.Cell(t.name) != nil
	case aServer:
		return s.Server(t.name) != nil
	case aVM:
		return s.VM(t.name) != nil
	case anOperation:
		id, err := strconv.ParseUint(t.name, 10, 64)
		return err == nil && s.Operation(id) != nil
	}
	return false
}

// depthMax bounds the stack: who goes round in circles leaves the oldest way behind.
const depthMax = 16

// goTo opens a screen; if it is open already further down, it goes back there.
func (a *App) goTo(s *screen) tea.Cmd {
	for i := len(a.stack) - 1; i > 0; i-- {
		if a.stack[i].crumb == s.crumb {
			for len(a.stack) > i {
				a.pop()
			}
			return a.push(s)
		}
	}
	for len(a.stack) >= depthMax {
		a.pop()
	}
	return a.push(s)
}

// run runs a line of the CLI's grammar, typed or meant by a key.
func (a *App) run(line string) tea.Cmd {
	c, err := parseCommand(line)
	if words, werr := splitWords(line); errors.Is(err, errUnknown) && werr == nil {
		return a.leave(words, err)
	}
	if err != nil {
		a.say(theme.Bad, err.Error())
		return nil
	}
	if c.verb.acts && a.readOnly {
		a.say(theme.Warn, "read-only: "+c.verb.path+" is off because the console was started with --readonly")
		return nil
	}
	return c.verb.run(a, c)
}

// parseCommand reads a line: words, quoted where they hold spaces, with or without "cellvisor" in front.
func parseCommand(line string) (call, error) {
	words, err := splitWords(line)
	if err != nil {
		return call{}, err
	}
	if len(words) > 0 && words[0] == "cellvisor" {
		words = words[1:]
	}
	if len(words) > 1 && words[1] == "list" {
		words[1] = "ls"
	}
	if len(words) == 0 {
		return call{}, errors.New("empty command; ? shows what there is")
	}
	v, rest, err := findVerb(words)
	if err != nil {
		return call{}, err
	}
	c := call{verb: v, flags: map[string]string{}}
	if err := c.take(rest); err != nil {
		return call{}, fmt.Errorf("%s: %w; usage: %s", v.path, err, strings.TrimSpace(v.path+" "+v.usage))
	}
	return c, nil
}

// findVerb matches the longest path.
func findVerb(words []string) (*verb, []string, error) {
	var siblings []string
	for i := range verbs {
		v := &verbs[i]
		path := strings.Fields(v.path)
		if len(words) >= len(path) && slices.Equal(words[:len(path)], path) {
			return v, words[len(path):], nil
		}
		if path[0] == words[0] && len(path) > 1 {
			siblings = append(siblings, path[1])
		}
	}
	if len(siblings) > 0 {
		return nil, nil, fmt.Errorf("%w %q; %s has: %s", errUnknown, strings.Join(words, " "), words[0], strings.Join(siblings, ", "))
	}
	return nil, nil, fmt.Errorf("%w %q; ? shows what there is", errUnknown, words[0])
}

// errUnknown says that the console has no such command.
var errUnknown = errors.New("unknown command")

// readers are the commands that the console leaves to the command line and that change nothing, by their first words.
var readers = []string{"audit", "bench", "doctor", "drill lint", "drill whatif", "health ls", "metrics", "version"}

// strays are words that the command line has no use for inside the console.
var strays = []string{"top", "up", "down", "serve", "worker", "completion", "demo", "help"}

// leave hands a line that the console does not know to the command line, whose own words those may be.
func (a *App) leave(words []string, unknown error) tea.Cmd {
	if len(words) > 0 && words[0] == "cellvisor" {
		words = words[1:]
	}
	if len(words) < 2 && !slices.Contains(readers, joinWords(words)) || slices.Contains(strays, words[0]) {
		a.say(theme.Bad, unknown.Error())
		return nil
	}
	line := joinWords(words)
	if slices.ContainsFunc(readers, func(r string) bool { return line == r || strings.HasPrefix(line, r+" ") }) {
		return a.begin(words)
	}
	if a.readOnly {
		a.say(theme.Warn, unknown.Error()+"; read-only: it is not left to the command line either")
		return nil
	}
	a.ask("Leave this to the command line?", quoteWords(words), []string{"The console does not know this command. It runs as a process of its own, and its output is shown."},
		func() tea.Cmd { return a.begin(words) })
	return nil
}

func joinWords(words []string) string { return strings.Join(words, " ") }

// take sorts the words into arguments and flags.
func (c *call) take(words []string) error {
	for i := 0; i < len(words); i++ {
		w := words[i]
		if !strings.HasPrefix(w, "-") || w == "-" {
			c.args = append(c.args, w)
			continue
		}
		name, value, has := strings.Cut(strings.TrimLeft(w, "-"), "=")
		takes, known := c.verb.flags[name]
		switch {
		case !known:
			return fmt.Errorf("unknown flag %s", w)
		case !takes && has:
			return fmt.Errorf("flag --%s takes no value", name)
		case takes && !has:
			if i++; i >= len(words) {
				return fmt.Errorf("flag --%s needs a value", name)
			}
			value = words[i]
		}
		c.flags[name] = value
	}
	if n := len(c.args); n < c.verb.args || n > c.verb.args+c.verb.more {
		return fmt.Errorf("%s given", plural(n, "argument", "arguments"))
	}
	return nil
}

// splitWords splits a line as a shell would, without expanding anything.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inside, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inside = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, inside = r, true
		case r == ' ' || r == '\t':
			if inside {
				words = append(words, word.String())
				word.Reset()
				inside = false
			}
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if inside {
		words = append(words, word.String())
	}
	return words, nil
}
