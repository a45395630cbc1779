package tui

import (
	"strings"

	"github.com/charmbracelet/bubbles/key"
)

// newHelp lists keys and commands. It is made from the tables that the keys and commands themselves come from.
func newHelp(a *App) *screen {
	p := newPager(a.theme, "Help")
	p.follow = false
	p.append([]byte(helpText(a.screen(), a.readOnly)))
	return &screen{theme: a.theme, crumb: "help", command: "help", panes: []pane{p}, arrange: whole}
}

func helpText(behind *screen, readOnly bool) string {
	var b strings.Builder
	section := func(title string, bindings ...key.Binding) {
		if len(bindings) == 0 {
			return
		}
		b.WriteString(title + "\n")
		for _, k := range bindings {
			b.WriteString("  " + pad(k.Help().Key, 12) + k.Help().Desc + "\n")
		}
		b.WriteByte('\n')
	}
	section("Keys of this pane", behind.focused().keys()...)
	g := globalKeys
	section("Everywhere", g.help, g.command, g.filter, g.back, g.leave, g.nextPane, g.prevPane, g.refresh, g.redraw, g.suspend, g.quit)
	var look, act []key.Binding
	for _, x := range actions {
		if x.acts {
			act = append(act, x.key)
		} else {
			look = append(look, x.key)
		}
	}
	section("Go to, or show what the cursor is on", look...)
	if readOnly {
		b.WriteString("The console was started with --readonly: it changes nothing.\n\n")
	} else {
		section("Act on the VM under the cursor (asks first)", act...)
	}
	b.WriteString("Commands, after ':' (as on the command line of cellvisor; tab completes)\n")
	for i := range verbs {
		v := &verbs[i]
		if v.acts && readOnly {
			continue
		}
		b.WriteString("  " + pad(strings.TrimSpace(v.path+" "+v.usage), 36) + v.help + "\n")
	}
	b.WriteString("\nFilters, after '/'\n" +
		"  word        rows that have it anywhere, whatever the case; of several words all\n" +
		"  !word       rows that do not have it\n" +
		"  state:lost  rows that have it in the column of that title\n")
	return b.String()
}

// pad fills up to cells, with at least two spaces at the end.
func pad(s string, cells int) string {
	return s + strings.Repeat(" ", max(cells-len(s), 2))
}
