package tidy

import (
	"go/ast"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Every kind of event is in docs/events.md. In code its words are joined by a dash, outside by a dot.
func TestEventsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, s := range sources(t) {
		if s.folder != "cells" || s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Names) != 1 || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "Event") {
				return true
			}
			lit, ok := v.Values[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			kind, err := strconv.Unquote(lit.Value)
			if err != nil {
				return true
			}
			found++
			if word := strings.Replace(kind, "-", ".", 1); !strings.Contains(string(doc), "`"+word+"`") {
				t.Errorf("%s: event %s is not in docs/events.md", s.at(v.Pos()), word)
			}
			return true
		})
	}
	if found < 15 {
		t.Errorf("found only %d kinds of events", found)
	}
}
