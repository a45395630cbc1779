package config

import (
	"fmt"
	"path/filepath"

	"github.com/cellvisor/cellvisor/ident"
)

// tls reads the block "tls", and refuses to do without one beyond the loopback interface, or with an API on TCP.
func (p *parser) tls(top *block, s *Server) {
	c := top.one("tls", false)
	if c == nil {
		switch addr := s.offLoopback(); {
		case addr != "":
			p.say(nil, fmt.Sprintf("the block \"tls\" is missing: without one, nobody can tell servers from strangers, which is allowed on loopback addresses only, "+
				"and %s is none; `cellvisor ca init` and `cellvisor ca issue` make its files", addr))
		case s.Listen.APITCP != "":
			p.say(nil, "the block \"tls\" is missing: api_tcp asks everyone for a certificate; `cellvisor ca init` and `cellvisor ca issue` make its files")
		}
		return
	}
	b := p.open(c.Body, `block "tls"`, "", c.DefRange, []string{"ca", "cert", "key"}, nil)
	for name, to := range map[string]*string{"ca": &s.TLS.CA, "cert": &s.TLS.Cert, "key": &s.TLS.Key} {
		path, _ := b.need(name)
		*to = p.absolute(path)
	}
}

// security reads the block "security".
func (p *parser) security(top *block, s *Server) {
	s.PageEncryption, s.Jail = true, true
	c := top.one("security", false)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "security"`, "", c.DefRange, []string{"page_encryption", "jail", "worker_user", "cgroup", "audit_max"}, nil)
	s.PageEncryption = p.onOff(b, "page_encryption")
	s.Jail = p.onOff(b, "jail")
	s.WorkerUser, _ = b.str("worker_user", "")
	s.Cgroup = p.cgroup(b)
	s.AuditBytes = p.auditMax(b)
}

// CgroupOff, for Server.Cgroup, gives workers no control groups.
const CgroupOff = "off"

// cgroup reads where workers' control groups are.
func (p *parser) cgroup(b *block) string {
	text, at := b.str("cgroup", "")
	if text != "" && text != CgroupOff && !filepath.IsAbs(text) {
		p.say(at, fmt.Sprintf("cgroup %q must be \"off\" or the path of a directory of control groups, such as \"/sys/fs/cgroup/cellvisor\"", text))
	}
	return text
}

// leastAudit is less than what an audit log could make use of.
const leastAudit = ident.MiB

// auditMax reads the space for the audit log.
func (p *parser) auditMax(b *block) ident.Bytes {
	text, at := b.str("audit_max", "")
	if text == "" {
		return 0
	}
	n, err := ParseSize(text)
	switch {
	case err != nil:
		p.say(at, "audit_max: "+err.Error())
	case n < leastAudit:
		p.say(at, fmt.Sprintf("audit_max %s is less than %s", n, leastAudit))
	}
	return n
}

// onOff reads a switch that is on unless it says otherwise.
func (p *parser) onOff(b *block, name string) bool { return p.choice(b, name, "on", "off") == "on" }
