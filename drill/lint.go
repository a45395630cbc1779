package drill

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/cellvisor/cellvisor/payload"
)

// Lint returns what is wrong or doubtful in a drill, one sentence each, with its line. It reaches no cluster.
func Lint(file string, src []byte) []string {
	p, err := Load(file, src)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	if p.About == "" {
		out = append(out, file+": begin the file with a string that says what it rehearses: `drill ls` shows it")
	}
	if p.MaxCells >= p.Cells {
		out = append(out, fmt.Sprintf("%s: max_cells = %d of %d cells leaves nothing that could survive", file, p.MaxCells, p.Cells))
	}
	tree, err := dialect.Parse(file, src, 0)
	if err != nil {
		return append(out, err.Error())
	}
	states := false
	syntax.Walk(tree, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok {
			return true
		}
		name, ok := call.Fn.(*syntax.Ident)
		if !ok {
			return true
		}
		w, ok := vocabulary[name.Name]
		if !ok {
			return true
		}
		states = states || slices.Contains([]string{"expect", "steady"}, name.Name)
		for _, problem := range lintCall(name.Name, w, call) {
			out = append(out, fmt.Sprintf("%s:%d: %s", file, name.NamePos.Line, problem))
		}
		return true
	})
	if !states {
		out = append(out, file+": it states nothing: without expect() or steady() it passes whatever happens")
	}
	return out
}

func lintCall(name string, w word, call *syntax.CallExpr) (out []string) {
	positional := 0
	for _, a := range call.Args {
		named, ok := a.(*syntax.BinaryExpr)
		if !ok || named.Op != syntax.EQ {
			positional++
			continue
		}
		key, ok := named.X.(*syntax.Ident)
		if !ok {
			continue
		}
		if !slices.Contains(w.params, key.Name) {
			out = append(out, fmt.Sprintf("%s() has no argument %s; it has %s", name, key.Name, strings.Join(w.params, ", ")))
			continue
		}
		if lit, ok := named.Y.(*syntax.Literal); ok {
			out = append(out, lintLiteral(name, key.Name, lit)...)
		}
	}
	if !w.variadic && positional > len(w.params) {
		out = append(out, fmt.Sprintf("%s() takes at most %d arguments", name, len(w.params)))
	}
	return out
}

func lintLiteral(name, key string, lit *syntax.Literal) []string {
	text, isText := lit.Value.(string)
	switch {
	case !isText:
	case slices.Contains([]string{"within", "stall"}, key):
		if _, err := duration(starlark.String(text)); err != nil {
			return []string{fmt.Sprintf("%s(%s=…): %v", name, key, err)}
		}
	case name == "vm" && key == "payload":
		if _, ok := payload.Lookup(text); !ok {
			return []string{fmt.Sprintf("vm(payload=%q): no built-in payload has that name", text)}
		}
	}
	return nil
}
