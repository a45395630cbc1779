package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cellvisor/cellvisor/ident"
)

// formats are the values of --output.
var formats = []string{"table", "wide", "json", "name"}

func (a *app) checkFormat() error {
	if !slices.Contains(formats, a.format) {
		return usagef("output format %q must be one of %s", a.format, strings.Join(formats, ", "))
	}
	return nil
}

// column is one column of a table. Wide columns are shown with -o wide only.
type column[T any] struct {
	head string
	cell func(T) string
	wide bool
}

// show prints rows in the chosen format. js converts a row for JSON, name gives its name.
func show[T, J any](a *app, rows []T, js func(T) J, name func(T) string, cols []column[T]) error {
	switch a.format {
	case "json":
		out := make([]J, 0, len(rows))
		for _, r := range rows {
			out = append(out, js(r))
		}
		return a.json(out)
	case "name":
		for _, r := range rows {
			fmt.Fprintln(a.out, name(r))
		}
		return nil
	}
	var head []string
	var shown []column[T]
	for _, c := range cols {
		if !c.wide || a.format == "wide" {
			head = append(head, c.head)
			shown = append(shown, c)
		}
	}
	table := [][]string{head}
	for _, r := range rows {
		var line []string
		for _, c := range shown {
			line = append(line, c.cell(r))
		}
		table = append(table, line)
	}
	a.table(table)
	return nil
}

// json prints a value as indented JSON.
func (a *app) json(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// jsonLine prints a value as JSON on one line, for streams.
func (a *app) jsonLine(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints lines in aligned columns; the first line is the heading. Words that are states get their colour after the widths are known.
func (a *app) table(lines [][]string) {
	var width []int
	for _, l := range lines {
		for i, c := range l {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	paint := a.painter()
	for n, l := range lines {
		var b strings.Builder
		for i, c := range l {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == len(l)-1 {
				pad = ""
			} else {
				pad += "  "
			}
			if n > 0 {
				c = paint.state(c)
			}
			b.WriteString(c + pad)
		}
		fmt.Fprintln(a.out, strings.TrimRight(b.String(), " "))
	}
}

// facts prints name and value pairs, one a line; empty values are left out.
func (a *app) facts(pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	paint := a.painter()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		value := strings.ReplaceAll(strings.TrimRight(pairs[i+1], "\n"), "\n", "\n"+strings.Repeat(" ", width+2))
		fmt.Fprintf(a.out, "%-*s  %s\n", width, pairs[i], paint.state(value))
	}
}

// painter colours words. Colour never carries meaning alone: the word is there too.
type painter struct{ on bool }

func (a *app) painter() painter { return painter{on: isTerminal(a.out) && colourWanted()} }

func colourWanted() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func (p painter) wrap(code, s string) string {
	if !p.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) bold(s string) string  { return p.wrap("1", s) }
func (p painter) faint(s string) string { return p.wrap("2", s) }
func (p painter) green(s string) string { return p.wrap("32", s) }
func (p painter) red(s string) string   { return p.wrap("31", s) }

// state colours the words for states and leaves all others alone.
func (p painter) state(s string) string {
	switch s {
	case "live", "running", "exited", "yes":
		return p.green(s)
	case "dead", "lost", "failed", "no":
		return p.red(s)
	case "joining", "starting", "degraded", "stopped":
		return p.wrap("33", s)
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// human prints a size for people: at most one decimal, in the largest unit below it.
func human(n uint64) string {
	switch b := ident.Bytes(n); {
	case b >= ident.GiB:
		return decimal(float64(n)/float64(ident.GiB)) + "GiB"
	case b >= ident.MiB:
		return decimal(float64(n)/float64(ident.MiB)) + "MiB"
	case b >= ident.KiB:
		return decimal(float64(n)/float64(ident.KiB)) + "KiB"
	}
	return fmt.Sprintf("%dB", n)
}

func decimal(f float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") }
