package config

import (
	"path/filepath"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// Context says how a client reaches a cluster: where it is and which certificate to show. Paths in its file are taken from the file's own
// directory, so that the directory can be moved as a whole.
//
//	addr = "10.0.0.1:7700,10.0.0.2:7700"
//	ca   = "ca.crt"
//	cert = "alice.crt"
//	key  = "alice.key"
type Context struct {
	Addr string
	TLS  TLS
}

// LoadContext reads a context file.
func LoadContext(path string) (*Context, error) {
	src, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	p := &parser{path: path, dir: filepath.Dir(path)}
	if abs, err := filepath.Abs(p.dir); err == nil {
		p.dir = abs
	}
	f, diags := hclparse.NewParser().ParseHCL(src, path)
	p.add(diags)
	if diags.HasErrors() {
		return nil, p.err()
	}
	top := p.open(f.Body, "file", "", hcl.Range{}, []string{"addr", "ca", "cert", "key"}, nil)
	c := &Context{}
	c.Addr, _ = top.str("addr", "")
	c.TLS.CA, _ = top.file("ca")
	c.TLS.Cert, _ = top.file("cert")
	c.TLS.Key, _ = top.file("key")
	if c.TLS != (TLS{}) && (c.TLS.CA == "" || c.TLS.Cert == "" || c.TLS.Key == "") {
		p.say(nil, "ca, cert and key belong together: name all three")
	}
	return c, p.err()
}

// FormatContext writes a context file for a directory that holds the certificate's files.
func FormatContext(c *Context) []byte {
	f := hclwrite.NewEmptyFile()
	setString(f.Body(), "addr", c.Addr)
	for _, a := range []struct{ name, path string }{{"ca", c.TLS.CA}, {"cert", c.TLS.Cert}, {"key", c.TLS.Key}} {
		f.Body().SetAttributeValue(a.name, cty.StringVal(filepath.Base(a.path)))
	}
	return append([]byte("# how to reach a cluster: cellvisor --context FILE …\n"), f.Bytes()...)
}
