package drill

import (
	"fmt"
	"html/template"
	"io"
	"strings"
)

// Measures of the timeline, in SVG user units.
const (
	chartWidth  = 1000
	labelWidth  = 110
	trackHeight = 22
	trackGap    = 6
	chartTop    = 46 // above the first track: numbers of the marks
	minMarkGap  = 19 // between the numbers of two marks
)

// bar, mark and tick are what the timeline draws.
type (
	bar struct {
		X, Y, W       float64
		Class, Title  string
		Label, Glyphs string
	}
	mark struct {
		X, LabelX float64
		N         int
		Class     string
		Step      Step
	}
	tick struct {
		X    float64
		Text string
	}
	label struct {
		Y    float64
		Text string
	}
	chart struct {
		Width, Height, Bottom, BarHeight int
		Labels                           []label
		Bars                             []bar
		Marks                            []mark
		Ticks                            []tick
	}
)

// stateClass gives a state its style. Colour never carries the meaning alone: the state stands in the bar or its title, and styles have patterns.
func stateClass(state string) string {
	switch {
	case state == "live", state == "running", state == "running, safe":
		return "good"
	case state == "dead", state == "lost", state == "failed":
		return "bad"
	case state == "exited", state == "stopped":
		return "done"
	}
	return "wait"
}

// drawing lays the timeline out.
func (rep *Report) drawing() chart {
	end := rep.TookMs + rep.Healing.TookMs
	for _, t := range rep.Timeline {
		for _, s := range t.Spans {
			end = max(end, s.ToMs)
		}
	}
	end = max(end, 1)
	x := func(ms int64) float64 {
		return labelWidth + float64(max(ms, 0))*float64(chartWidth-labelWidth-10)/float64(end)
	}
	c := chart{Width: chartWidth, BarHeight: trackHeight}
	y := float64(chartTop)
	for _, t := range rep.Timeline {
		c.Labels = append(c.Labels, label{Y: y + 15, Text: t.Kind + " " + t.Name})
		for _, s := range t.Spans {
			b := bar{X: x(s.FromMs), Y: y, W: max(x(s.ToMs)-x(s.FromMs), 1), Class: stateClass(s.State),
				Title: fmt.Sprintf("%s %s: %s from %s to %s", t.Kind, t.Name, s.State, seconds(s.FromMs), seconds(s.ToMs))}
			if b.W > float64(8*len(s.State)) {
				b.Label = s.State
			}
			c.Bars = append(c.Bars, b)
		}
		y += trackHeight + trackGap
	}
	c.Bottom = int(y)
	c.Height = c.Bottom + 24
	last := -1000.0
	for i, s := range rep.Steps {
		if s.Kind == "log" || s.Kind == "start" {
			continue
		}
		m := mark{X: x(s.AtMs), N: i + 1, Class: s.Kind, Step: s}
		m.LabelX = max(m.X, last+minMarkGap)
		last = m.LabelX
		c.Marks = append(c.Marks, m)
	}
	// Numbers that were pushed beyond the right edge push the others back.
	room := float64(chartWidth - minMarkGap/2)
	for i := len(c.Marks) - 1; i >= 0; i-- {
		c.Marks[i].LabelX = min(c.Marks[i].LabelX, room)
		room = c.Marks[i].LabelX - minMarkGap
	}
	step := tickStep(end)
	for at := int64(0); at <= end; at += step {
		c.Ticks = append(c.Ticks, tick{X: x(at), Text: fmt.Sprintf("%g s", float64(at)/1000)})
	}
	return c
}

// tickStep chooses a round distance that gives at most ten ticks.
func tickStep(endMs int64) int64 {
	for unit := int64(100); ; unit *= 10 {
		for _, n := range []int64{1, 2, 5} {
			if endMs/(unit*n) <= 10 {
				return unit * n
			}
		}
	}
}

// HTML writes the report as one page that needs nothing else: no script, no network.
func (rep *Report) HTML(w io.Writer) error {
	return page.Execute(w, struct {
		*Report
		Chart chart
	}{rep, rep.drawing()})
}

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"seconds": seconds, "stages": stageText, "word": okWord, "lower": strings.ToLower, "inc": func(i int) int { return i + 1 },
}).Parse(pageText))

const pageText = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>drill {{.Drill}}: {{.Verdict}}</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #667; --rule: #d5d9de; --good: #2e7d4f; --bad: #b3261e; --wait: #b87a00; --done: #5b6b7b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --faint: #99a; --rule: #343a40; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule); }
th { color: var(--faint); font-weight: normal; } th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1%; padding-right: 1.2rem; }
.verdict, .ok { padding: .1rem .5rem; border-radius: .25rem; color: #fff; } .passed, .w-ok { background: var(--good); } .failed, .error, .w-failed { background: var(--bad); } .aborted { background: var(--wait); }
.why, .instead { color: var(--bad); } svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.in { fill: #fff; } .good { fill: var(--good); } .bad { fill: var(--bad); } .wait { fill: var(--wait); } .done { fill: var(--done); }
line.tick { stroke: var(--rule); } line.fault { stroke: var(--bad); stroke-width: 2; } line.undo { stroke: var(--wait); stroke-dasharray: 4 3; } line.expect { stroke: var(--faint); stroke-dasharray: 1 3; }
code { font-size: .9em; }
</style></head><body>
<h1>drill {{.Drill}} <span class="verdict {{.Verdict}}">{{.Verdict}}</span></h1>
<p>{{.About}}</p>
{{with .Why}}<p class="why">{{.}}</p>{{end}}
<p>{{.StartedAt.Format "2006-01-02 15:04:05"}} UTC, {{seconds .TookMs}}, seed {{.Seed}}. Servers: {{range .Servers}}{{.}} {{end}}<br>Replay: <code>{{.Replay}}</code></p>
<h2>Timeline</h2>
<svg viewBox="0 0 {{.Chart.Width}} {{.Chart.Height}}" role="img" aria-label="states of servers and VMs over time">
{{$c := .Chart}}{{range .Chart.Ticks}}<line class="tick" x1="{{.X}}" x2="{{.X}}" y1="40" y2="{{$c.Bottom}}"/><text x="{{.X}}" y="{{$c.Height}}" dy="-8" text-anchor="middle">{{.Text}}</text>
{{end}}{{range .Chart.Labels}}<text x="0" y="{{.Y}}">{{.Text}}</text>
{{end}}{{range .Chart.Bars}}<g><title>{{.Title}}</title><rect class="{{.Class}}" x="{{.X}}" y="{{.Y}}" width="{{.W}}" height="{{$c.BarHeight}}"/>{{if .Label}}<text class="in" x="{{.X}}" y="{{.Y}}" dx="4" dy="15">{{.Label}}</text>{{end}}</g>
{{end}}{{range .Chart.Marks}}<g><title>{{seconds .Step.AtMs}} {{.Step.Kind}}: {{.Step.Text}}</title><line class="{{.Class}}" x1="{{.X}}" x2="{{.X}}" y1="32" y2="{{$c.Bottom}}"/><text x="{{.LabelX}}" y="24" text-anchor="middle">{{.N}}</text></g>
{{end}}</svg>
<p>Red line: a fault. Dashed: its undoing. Dotted: an expectation. The numbers are those of the steps.</p>
<h2>Expectations</h2>
<table><tr><th class="n">at</th><th></th><th>what</th><th class="n">took</th><th class="n">within</th></tr>
{{range .Expectations}}<tr><td class="n">{{seconds .AtMs}}</td><td><span class="ok w-{{lower (word .OK)}}">{{word .OK}}</span></td><td>{{.Name}} <small>{{.Where}}</small>{{if not .OK}}<br><span class="instead">instead: {{.Instead}}</span>{{end}}</td><td class="n">{{.TookMs}} ms</td><td class="n">{{seconds .WithinMs}}</td></tr>
{{end}}</table>
{{if .Invariants}}<h2>Throughout</h2>
<table><tr><th class="n">from</th><th></th><th>what</th><th class="n">looks</th></tr>
{{range .Invariants}}<tr><td class="n">{{seconds .FromMs}}</td><td><span class="ok w-{{lower (word .OK)}}">{{word .OK}}</span></td><td>{{.Name}} <small>{{.Where}}</small>{{if not .OK}}<br><span class="instead">broke after {{seconds .BrokenMs}}; instead: {{.Instead}}</span>{{end}}</td><td class="n">{{.Checks}}</td></tr>
{{end}}</table>{{end}}
<h2>Recovery, by stages</h2>
{{if .Recoveries}}<table><tr><th class="n">at</th><th class="n">epoch</th><th>who</th><th>stages</th></tr>
{{range .Recoveries}}<tr><td class="n">{{seconds .AtMs}}</td><td class="n">{{.Epoch}}</td><td>{{.Subject}}</td><td>{{stages .Stages}}</td></tr>
{{end}}</table>{{else}}<p>No recovery took place.</p>{{end}}
<h2>VMs</h2>
<table><tr><th>VM</th><th class="n">records</th><th class="n">longest silence</th><th>lost</th></tr>
{{$lost := .Lost}}{{range .Outputs}}{{$vm := .VM}}<tr><td>{{.VM}}</td><td class="n">{{.Records}}</td><td class="n">{{seconds .LongestGapMs}}</td><td>{{range $lost}}{{if eq .VM $vm}}at {{seconds .AtMs}}: {{.Reason}}{{end}}{{end}}</td></tr>
{{end}}</table>
<h2>Healing <span class="ok w-{{lower (word .Healing.OK)}}">{{word .Healing.OK}}</span></h2>
<p>{{range .Healing.Actions}}{{.}}. {{end}}{{.Healing.Problem}} {{seconds .Healing.TookMs}}.</p>
<h2>Steps</h2>
<table><tr><th></th><th class="n">at</th><th></th><th></th></tr>
{{range $i, $s := .Steps}}<tr><td class="n">{{inc $i}}</td><td class="n">{{seconds $s.AtMs}}</td><td>{{$s.Kind}}</td><td>{{$s.Text}}</td></tr>
{{end}}</table>
<h2>Events of the cluster</h2>
<table><tr><th class="n">at</th><th class="n">epoch</th><th>type</th><th>message</th></tr>
{{range .Events}}<tr><td class="n">{{seconds .AtMs}}</td><td class="n">{{.Epoch}}</td><td>{{.Type}}</td><td>{{.Message}}</td></tr>
{{end}}</table>
</body></html>
`
