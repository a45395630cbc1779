package drill

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Program is a drill that was read and declared, and not run yet.
type Program struct {
	Name     string // the file's name without .star
	About    string // the file's first sentence in a string
	Cells    int    // cells that it needs at least
	Servers  int    // servers that each of them needs at least
	MaxCells int    // blast radius: cells that may be broken at a time

	file  string
	lines []string
	body  starlark.Callable
}

const maxProgramBytes = 1 << 20

var dialect = &syntax.FileOptions{Set: true, While: true, TopLevelControl: true, Recursion: false}

// Load reads a drill and executes its top level, where nothing of a cluster can be reached.
func Load(file string, src []byte) (*Program, error) {
	if len(src) > maxProgramBytes {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", file, len(src), maxProgramBytes)
	}
	tree, err := dialect.Parse(file, src, 0)
	if err != nil {
		return nil, err
	}
	if err := boundTimes(tree); err != nil {
		return nil, err
	}
	words := predeclared()
	prog, err := starlark.FileProgram(tree, words.Has)
	if err != nil {
		return nil, err
	}
	thread := &starlark.Thread{Name: "declare", Print: func(*starlark.Thread, string) {}}
	bound(thread)
	globals, err := prog.Init(thread, words)
	if err != nil {
		return nil, explain(err)
	}
	p := &Program{
		Name: strings.TrimSuffix(filepath.Base(file), ".star"), About: docString(tree), Cells: 3, Servers: 1, MaxCells: 1,
		file: file, lines: strings.Split(string(src), "\n"),
	}
	return p, p.read(globals)
}

// File is where the drill was read from, as it was given.
func (p *Program) File() string { return p.file }

// read takes the declarations from the file's globals.
func (p *Program) read(globals starlark.StringDict) error {
	for _, d := range []struct {
		name string
		to   *int
		high int
	}{{"cells", &p.Cells, 26}, {"servers", &p.Servers, 32}, {"max_cells", &p.MaxCells, 26}} {
		v, ok := globals[d.name]
		if !ok {
			continue
		}
		n, err := starlark.AsInt32(v)
		if err != nil || n < 1 || n > d.high {
			return fmt.Errorf("%s: %s = %s must be a number from 1 to %d", p.file, d.name, v, d.high)
		}
		*d.to = n
	}
	body, ok := globals["drill"].(*starlark.Function)
	switch {
	case !ok:
		return fmt.Errorf("%s: there is no function drill(): what a drill does stands in `def drill():`", p.file)
	case body.NumParams() != 0:
		return fmt.Errorf("%s: drill() takes no parameters", p.file)
	}
	body.Freeze()
	p.body = body
	return nil
}

// docString returns the string that a file begins with, on one line.
func docString(tree *syntax.File) string {
	if len(tree.Stmts) == 0 {
		return ""
	}
	if e, ok := tree.Stmts[0].(*syntax.ExprStmt); ok {
		if lit, ok := e.X.(*syntax.Literal); ok && lit.Token == syntax.STRING {
			return strings.Join(strings.Fields(lit.Value.(string)), " ")
		}
	}
	return ""
}

// line returns a line of the source without its indent; n counts from 1.
func (p *Program) line(n int32) string {
	if n < 1 || int(n) > len(p.lines) {
		return ""
	}
	text, _, _ := strings.Cut(strings.TrimSpace(p.lines[n-1]), "  #")
	return text
}

// explain replaces Starlark's error by one that names the innermost line of the drill.
func explain(err error) error {
	var eval *starlark.EvalError
	if !errors.As(err, &eval) {
		return err
	}
	for i := range eval.CallStack {
		if f := eval.CallStack.At(i); f.Pos.Line > 0 {
			return fmt.Errorf("%s:%d: %w", filepath.Base(f.Pos.Filename()), f.Pos.Line, innermost(eval))
		}
	}
	return innermost(eval)
}

// innermost takes the wrapping of nested calls off: what the builtin itself said.
func innermost(err error) error {
	for {
		var eval *starlark.EvalError
		if !errors.As(err, &eval) {
			return err
		}
		inner := eval.Unwrap()
		if inner == nil {
			return errors.New(eval.Msg)
		}
		err = inner
	}
}
