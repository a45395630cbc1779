package tui

import (
	"slices"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/tui/theme"
)

// prompt is the line at the bottom that is typed into: a command after ':', a filter after '/'.
type prompt struct {
	lead  string
	input editor
	// typed, if set, runs at every change; done at enter; dropped at esc.
	typed   func(text string)
	done    func(a *App, text string) tea.Cmd
	dropped func()
	// complete, if set, returns the ways on from a text, for tab.
	complete func(text string) []string
	// recall is the position in the history, its length when at the line being typed.
	recall  int
	choices []string
}

// promptRunes bounds what can be typed.
const promptRunes = 512

func newPrompt(lead, text string) *prompt {
	p := &prompt{lead: lead, input: editor{room: promptRunes}}
	p.input.set(text)
	return p
}

func newFilterPrompt(target pane) *prompt {
	before := target.filtered()
	p := newPrompt("/", before)
	p.typed = target.filter
	p.done = func(*App, string) tea.Cmd { return nil }
	p.dropped = func() { target.filter(before) }
	return p
}

func newCommandPrompt(a *App) *prompt {
	p := newPrompt(":", "")
	p.recall = len(a.history)
	p.complete = a.completions
	p.done = func(a *App, text string) tea.Cmd {
		if strings.TrimSpace(text) == "" {
			return nil
		}
		a.remember(text)
		return a.run(text)
	}
	return p
}

const historyMax = 100

func (a *App) remember(line string) {
	a.history = slices.DeleteFunc(a.history, func(h string) bool { return h == line })
	a.history = append(a.history, line)
	if len(a.history) > historyMax {
		a.history = a.history[1:]
	}
}

func (p *prompt) handle(a *App, k tea.KeyMsg) tea.Cmd {
	p.choices = nil
	switch k.String() {
	case "enter":
		a.prompt = nil
		return p.done(a, p.input.value())
	case "esc":
		a.prompt = nil
		if p.dropped != nil {
			p.dropped()
		}
		return nil
	case "backspace":
		if p.input.value() == "" {
			a.prompt = nil
			return nil
		}
	case "tab":
		p.tab()
		return nil
	case "up", "down":
		if p.lead == ":" {
			p.remembered(a.history, k.String() == "up")
		}
		return nil
	}
	before := p.input.value()
	p.input.handle(k)
	if p.typed != nil && p.input.value() != before {
		p.typed(p.input.value())
	}
	return nil
}

func (p *prompt) remembered(history []string, back bool) {
	if back {
		p.recall = max(p.recall-1, 0)
	} else {
		p.recall = min(p.recall+1, len(history))
	}
	text := ""
	if p.recall < len(history) {
		text = history[p.recall]
	}
	p.input.set(text)
}

// tab takes what all completions have in common, and shows them if there are several.
func (p *prompt) tab() {
	if p.complete == nil {
		return
	}
	choices := p.complete(p.input.value())
	if len(choices) == 0 {
		return
	}
	common := choices[0]
	for _, c := range choices[1:] {
		for !strings.HasPrefix(c, common) {
			common = common[:len(common)-1]
		}
	}
	if len(common) >= len(p.input.value()) {
		p.input.set(common)
	}
	if len(choices) > 1 {
		p.choices = choices
	}
}

// line draws the prompt; the cursor is a cell in reverse, or an underscore where there is no colour.
func (p *prompt) line(t *theme.Theme, width int) string {
	text, at := p.input.text, p.input.at
	before, under, after := t.Clean(string(text[:at])), " ", ""
	if at < len(text) {
		under, after = t.Clean(string(text[at:at+1])), t.Clean(string(text[at+1:]))
	}
	// Of a line longer than the terminal, the part around the cursor is shown.
	room := width - 2
	for theme.Width(before) > max(room, 0) {
		before = theme.Skip(before, 8)
	}
	if at == len(text) && t.Paint(theme.Selected, "x") == "x" {
		under = "_"
	}
	hint := ""
	if len(p.choices) > 0 {
		words := make([]string, len(p.choices))
		for i, c := range p.choices {
			words[i] = lastWord(c)
		}
		hint = "   " + t.Clean(strings.Join(words, " "))
	}
	rest := width - 1 - theme.Width(before) - theme.Width(under)
	if rest < 0 {
		return t.Fit(p.lead+before, width)
	}
	tail := t.Fit(after+hint, rest)
	return t.Paint(theme.Accent, p.lead) + before + t.Paint(theme.Selected, under) + tail
}

// lastWord is the last word of a line, ended by a space or not.
func lastWord(line string) string {
	words := strings.Fields(line)
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

// completions returns the lines that a command line may go on as.
func (a *App) completions(line string) []string {
	lead := ""
	if rest, found := strings.CutPrefix(line, "cellvisor "); found {
		lead, line = "cellvisor ", rest
	}
	var out []string
	add := func(s string) {
		if strings.HasPrefix(s, line) && !slices.Contains(out, lead+s) {
			out = append(out, lead+s)
		}
	}
	for i := range verbs {
		v := &verbs[i]
		// While the path is being typed: the next word of it.
		if rest, found := strings.CutPrefix(line, v.path+" "); found {
			a.completeWord(v, line[:len(line)-len(rest)], rest, add)
			continue
		}
		if strings.HasPrefix(v.path, line) {
			next := line + nextWord(v.path[len(line):])
			if next == v.path && v.usage != "" {
				next += " "
			}
			add(next)
		}
	}
	slices.Sort(out)
	return out
}

// nextWord is the rest of the word being typed, with the space that ends it if more words follow.
func nextWord(rest string) string {
	word, _, more := strings.Cut(strings.TrimLeft(rest, " "), " ")
	if strings.HasPrefix(rest, " ") {
		word = " " + word
	}
	if more {
		word += " "
	}
	return word
}

// completeWord offers names and flags for the last word of rest.
func (a *App) completeWord(v *verb, path, rest string, add func(string)) {
	begin := path + rest[:strings.LastIndexByte(rest, ' ')+1]
	for name := range v.flags {
		if len(name) > 1 {
			add(begin + "--" + name)
		}
	}
	s := a.snapshot()
	switch v.of {
	case aCell:
		for _, c := range s.Cells {
			add(begin + c.GetName())
		}
	case aServer:
		for _, c := range s.Servers {
			add(begin + c.GetName())
		}
	case aVM:
		for _, c := range s.VMs {
			add(begin + c.GetName())
		}
	case anOperation:
		for _, op := range s.Operations {
			add(begin + number(op.GetId()))
		}
	case aDrill:
		for _, d := range a.drills {
			add(begin + d.Name)
		}
	}
}
