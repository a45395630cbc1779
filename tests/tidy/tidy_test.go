// Package tidy enforces the habits of this code base as an ordinary test: the floors and what may import what, the purity of the cores, sizes,
// and a few things that are never done.
package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cellvisor/cellvisor/"

// floors gives each top-level folder its floor. A package imports only from lower floors and from its own folder; folders on one floor never
// import each other.
var floors = map[string]int{
	"ident": 0,
	"wire":  1,
	"cells": 2, "mem": 2, "gang": 2, "balancer": 2, "recovery": 2, "health": 2,
	"monitor": 3,
	"link":    4, "vmm": 4, "payload": 4, "disk": 4, "api": 4, "config": 4, "drills": 4, "trust": 4, "audit": 4, "jail": 4,
	"server": 5, "worker": 5,
	"sim": 6, "tui": 6, "drill": 6, "local": 6,
	"demo": 7, "bench": 7, "rehearsal": 7,
	"cmd":   8,
	"tests": 9,
}

const (
	lastPureFloor = 3
	simulator     = "sim" // drives the pure floors, and sees nothing else of the product
)

// sizes: most files are far shorter. What is longer today may not grow; lower the number when it shrinks.
const (
	maxFileLines     = 400
	maxTestFileLines = 600
	maxFunctionLines = 70
)

// impure is what a core must not import: it is told the time, it starts nothing, it touches nothing outside itself.
var impure = []string{
	"time", "sync", "sync/atomic", "context", "os", "net", "unsafe", "math/rand", "crypto/rand", "syscall", "log", "runtime",
	"golang.org/x/sys/unix",
}

// seededRandom is what a core may use of math/rand/v2: generators with a seed of their own. The functions of the package itself draw on a
// source that nobody can replay.
var seededRandom = []string{"New", "NewPCG", "NewChaCha8", "Rand", "PCG", "ChaCha8", "Source", "NewZipf", "Zipf"}

// forbiddenNames say nothing about what is in a package.
var forbiddenNames = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "base"}

// source is one parsed Go file.
type source struct {
	path   string // from the root, with slashes
	folder string // its top-level folder
	test   bool
	text   string
	set    *token.FileSet
	file   *ast.File
}

func (s *source) at(p token.Pos) string { return fmt.Sprintf("%s:%d", s.path, s.set.Position(p).Line) }

func (s *source) generated() bool { return ast.IsGenerated(s.file) }

func (s *source) imports() map[string]token.Pos {
	out := make(map[string]token.Pos)
	for _, i := range s.file.Imports {
		if path, err := strconv.Unquote(i.Path.Value); err == nil {
			out[path] = i.Pos()
		}
	}
	return out
}

func sources(t *testing.T) []*source {
	t.Helper()
	const root = "../.."
	var out []*source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "dist") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s := &source{path: filepath.ToSlash(rel), test: strings.HasSuffix(rel, "_test.go"), text: string(text), set: token.NewFileSet()}
		s.folder, _, _ = strings.Cut(s.path, "/")
		if s.file, err = parser.ParseFile(s.set, s.path, text, parser.ParseComments); err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("found only %d Go files", len(out))
	}
	return out
}

func TestFloors(t *testing.T) {
	for _, s := range sources(t) {
		own, known := floors[s.folder]
		if !known {
			t.Errorf("%s: the folder %q has no floor: give it one in this test and in ARCHITECTURE.md", s.path, s.folder)
			continue
		}
		if s.test { // a test may look around
			continue
		}
		for path, pos := range s.imports() {
			rel, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			folder, _, _ := strings.Cut(rel, "/")
			floor := floors[folder]
			switch {
			case folder == s.folder:
			case floor >= own:
				t.Errorf("%s: %s (floor %d) imports %s (floor %d): imports go strictly downward", s.at(pos), s.folder, own, folder, floor)
			case s.folder == simulator && floor > lastPureFloor:
				t.Errorf("%s: the simulator imports %s: it drives the pure floors only", s.at(pos), folder)
			}
		}
	}
}

// The cores and the simulator's worlds decide by their inputs alone.
func TestPurity(t *testing.T) {
	for _, s := range sources(t) {
		floor, known := floors[s.folder]
		if !known || floor > lastPureFloor || s.test {
			continue
		}
		for path, pos := range s.imports() {
			if slices.Contains(impure, path) || strings.HasPrefix(path, "os/") || strings.HasPrefix(path, "net/") {
				t.Errorf("%s: a pure package imports %s", s.at(pos), path)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a pure package starts a goroutine", s.at(n.Pos()))
			case *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
				t.Errorf("%s: a pure package uses channels", s.at(n.Pos()))
			case *ast.SelectorExpr:
				if pkg, ok := n.X.(*ast.Ident); ok && pkg.Name == "rand" && !slices.Contains(seededRandom, n.Sel.Name) {
					t.Errorf("%s: a pure package uses rand.%s, which no seed determines", s.at(n.Pos()), n.Sel.Name)
				}
			case *ast.Ident:
				if n.Name == "float64" || n.Name == "float32" {
					t.Errorf("%s: a pure package uses %s: decisions must not depend on rounding", s.at(n.Pos()), n.Name)
				}
			}
			return true
		})
	}
}

func TestNames(t *testing.T) {
	documented := make(map[string]bool)
	for _, s := range sources(t) {
		name := strings.TrimSuffix(s.file.Name.Name, "_test")
		if slices.Contains(forbiddenNames, name) {
			t.Errorf("%s: package %s: the name says nothing about what is in it", s.path, name)
		}
		dir := filepath.Dir(s.path)
		documented[dir] = documented[dir] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file of the package has a package comment", dir)
		}
	}
}

func TestUnsafeIsNamed(t *testing.T) {
	for _, s := range sources(t) {
		for _, path := range []string{"unsafe", "reflect/unsafe"} {
			base := strings.TrimSuffix(strings.TrimSuffix(s.path, ".go"), "_test")
			if pos, has := s.imports()[path]; has && !strings.HasSuffix(base, "_unsafe") && !s.generated() {
				t.Errorf("%s: imports unsafe, so its name must end in _unsafe.go", s.at(pos))
			}
		}
		if pos, has := s.imports()["C"]; has {
			t.Errorf("%s: cgo is not used here", s.at(pos))
		}
	}
}

// A test that sleeps is slow when the machine is fast and wrong when it is slow.
func TestNoSleepInTests(t *testing.T) {
	for _, s := range sources(t) {
		if !s.test && s.folder != "tests" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
					t.Errorf("%s: time.Sleep in a test: wait for something observable with a deadline, or use virtual time", s.at(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestSizes(t *testing.T) {
	type size struct{ lines, limit int }
	long := make(map[string]size)
	note := func(what string, lines, limit int) {
		if lines > limit {
			long[what] = size{lines, limit}
		}
	}
	for _, s := range sources(t) {
		if s.generated() {
			continue
		}
		limit := maxFileLines
		if s.test {
			limit = maxTestFileLines
		}
		note(s.path, strings.Count(s.text, "\n"), limit)
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil && !s.test {
				note(s.path+" "+f.Name.Name, s.set.Position(f.End()).Line-s.set.Position(f.Pos()).Line+1, maxFunctionLines)
			}
		}
	}
	for what, z := range long {
		if z.lines > max(longer[what], z.limit) {
			t.Errorf("%s has %d lines, %d are allowed: split it by what it does", what, z.lines, max(longer[what], z.limit))
		}
	}
	for what, allowed := range longer {
		if long[what].lines < allowed {
			t.Errorf("%s has fewer than %d lines now: lower its number in longer_test.go, or take it out", what, allowed)
		}
	}
}
