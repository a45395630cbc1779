package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// maxFileBytes bounds a configuration file: one with a thousand servers stays far below.
const maxFileBytes = 4 << 20

// Load reads and validates the configuration file at path. Relative paths in it are taken from the file's own directory.
func Load(path string) (*Server, error) {
	src, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, src)
}

// readBounded reads a file whole, and no more than maxFileBytes of what never ends.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return nil, fmt.Errorf("config: %s is a directory, not a file", path)
	}
	src, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(src) > maxFileBytes {
		return nil, fmt.Errorf("config: %s is larger than the %d bytes that are read", path, maxFileBytes)
	}
	return src, nil
}

// Parse validates the configuration in src. The error, if any, has one line for each thing that is wrong, each beginning with
// file:line:column.
func Parse(path string, src []byte) (*Server, error) {
	p := &parser{path: path, dir: filepath.Dir(path)}
	if abs, err := filepath.Abs(p.dir); err == nil {
		p.dir = abs
	}
	f, diags := hclparse.NewParser().ParseHCL(src, path)
	p.add(diags)
	if diags.HasErrors() {
		return nil, p.err()
	}
	cfg := p.server(f.Body)
	if err := p.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// parser collects what is wrong, so that an operator sees all of it at once.
type parser struct {
	path  string
	dir   string // base of relative paths
	wrong []string
	seen  map[string]bool
}

func (p *parser) add(diags hcl.Diagnostics) {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		text := d.Summary
		if d.Detail != "" {
			text += ": " + d.Detail
		}
		p.say(d.Subject, text)
	}
}

func (p *parser) say(at *hcl.Range, text string) {
	line := fmt.Sprintf("%s: %s", p.path, text)
	if at != nil {
		line = fmt.Sprintf("%s:%d:%d: %s", p.path, at.Start.Line, at.Start.Column, text)
	}
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	if !p.seen[line] {
		p.seen[line] = true
		p.wrong = append(p.wrong, line)
	}
}

func (p *parser) err() error {
	if len(p.wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(p.wrong, "\n"))
}

// block is one HCL block or the file's body: its attributes, its blocks, and where it begins.
type block struct {
	p      *parser
	what   string // for messages: `block "server"`
	at     hcl.Range
	label  string
	attrs  hcl.Attributes
	blocks hcl.Blocks
}

// open reads a body by its schema; what the schema does not know is reported with its place.
func (p *parser) open(body hcl.Body, what, label string, at hcl.Range, attrs []string, blocks []hcl.BlockHeaderSchema) *block {
	schema := &hcl.BodySchema{Blocks: blocks}
	for _, a := range attrs {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a})
	}
	c, diags := body.Content(schema)
	p.add(diags)
	return &block{p: p, what: what, label: label, at: at, attrs: c.Attributes, blocks: c.Blocks}
}

// one returns the single block of a type, or nil. A second one is an error, and so is its absence if it is needed.
func (b *block) one(typ string, needed bool) *hcl.Block {
	var found *hcl.Block
	for _, c := range b.blocks.OfType(typ) {
		if found != nil {
			b.p.say(&c.DefRange, fmt.Sprintf("a second block %q; the first is in line %d", typ, found.DefRange.Start.Line))
			continue
		}
		found = c
	}
	if found == nil && needed {
		b.p.say(nil, fmt.Sprintf("the block %q is missing", typ))
	}
	return found
}

// value evaluates an attribute as the wanted type. ok is false if it is absent or wrong.
func (b *block) value(name string, want cty.Type) (v cty.Value, at *hcl.Range, ok bool) {
	a := b.attrs[name]
	if a == nil {
		return cty.NilVal, nil, false
	}
	at = a.Expr.Range().Ptr()
	v, diags := a.Expr.Value(nil)
	if diags.HasErrors() {
		b.p.add(diags)
		return cty.NilVal, at, false
	}
	v, err := convert.Convert(v, want)
	if err != nil || v.IsNull() || !v.IsWhollyKnown() {
		b.p.say(at, fmt.Sprintf("%s must be a %s", name, want.FriendlyName()))
		return cty.NilVal, at, false
	}
	return v, at, true
}

// str returns a string attribute, or def.
func (b *block) str(name, def string) (string, *hcl.Range) {
	v, at, ok := b.value(name, cty.String)
	if !ok {
		return def, at
	}
	return v.AsString(), at
}

// need returns a string attribute that must be there and not be empty.
func (b *block) need(name string) (string, *hcl.Range) {
	if b.attrs[name] == nil {
		b.p.say(&b.at, fmt.Sprintf("%s: %s is missing", b.what, name))
		return "", &b.at
	}
	s, at := b.str(name, "")
	if s == "" && len(b.p.wrong) == 0 {
		b.p.say(at, name+" is empty")
	}
	return s, at
}

// integer returns a whole number between lo and hi, or def.
func (b *block) integer(name string, def, lo, hi int64) int64 {
	v, at, ok := b.value(name, cty.Number)
	if !ok {
		return def
	}
	f := v.AsBigFloat()
	n, acc := f.Int64()
	if acc != 0 || !f.IsInt() || n < lo || n > hi {
		b.p.say(at, fmt.Sprintf("%s must be a whole number from %d to %d, not %s", name, lo, hi, f.Text('f', -1)))
		return def
	}
	return n
}

// strings returns a list of strings.
func (b *block) strings(name string) ([]string, *hcl.Range) {
	v, at, ok := b.value(name, cty.List(cty.String))
	if !ok {
		return nil, at
	}
	var out []string
	for _, e := range v.AsValueSlice() {
		if e.IsNull() || e.AsString() == "" {
			b.p.say(at, name+" has an empty entry")
			continue
		}
		out = append(out, e.AsString())
	}
	return out, at
}

// file returns an attribute that is a path, made absolute.
func (b *block) file(name string) (string, *hcl.Range) {
	s, at := b.str(name, "")
	return b.p.absolute(s), at
}

func (p *parser) absolute(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.dir, path)
}
