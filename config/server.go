package config

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// Limits of what a file may ask for.
const (
	maxSlots = 4096

	maxOvercommit = 64
	maxCPU        = 1024
	maxSocketLen  = 107 // sun_path without its NUL
	minSecretLen  = 16
	maxVoters     = 7
)

var (
	clusterIDPattern   = regexp.MustCompile(`^[0-9a-f]{32}$`)
	cellPattern        = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)
	serverPattern      = regexp.MustCompile(`^([a-z][a-z0-9]{0,14})-[1-9][0-9]{0,4}$`)
	clusterNamePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
)

var topBlocks = []hcl.BlockHeaderSchema{
	{Type: "cluster"}, {Type: "server"}, {Type: "listen"}, {Type: "log"}, {Type: "timing"}, {Type: "tls"}, {Type: "security"}, {Type: "health"},
	{Type: "initial", LabelNames: []string{"name"}},
}

// server turns the body of a file into a Server.
func (p *parser) server(body hcl.Body) *Server {
	top := p.open(body, "file", "", hcl.Range{}, []string{"join"}, topBlocks)
	s := &Server{File: p.path, Timing: DefaultTiming()}
	p.cluster(top, s)
	p.self(top, s)
	p.listen(top, s)
	p.log(top, s)
	p.timing(top, s)
	p.health(top, s)
	p.initial(top, s)
	p.join(top, s)
	p.tls(top, s)
	p.security(top, s)
	p.secret(top, s)
	return s
}

func (p *parser) cluster(top *block, s *Server) {
	c := top.one("cluster", true)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "cluster"`, "", c.DefRange, []string{"name", "id", "drills"}, nil)
	s.Drills = p.choice(b, "drills", "refuse", "refuse", "allow") == "allow"
	var at *hcl.Range
	if s.ClusterName, at = b.str("name", "cellvisor"); !clusterNamePattern.MatchString(s.ClusterName) {
		p.say(at, fmt.Sprintf("cluster name %q must be 1 to 63 of a-z, 0-9 and '-', beginning with a letter", s.ClusterName))
	}
	if s.ClusterID, at = b.need("id"); s.ClusterID != "" && !clusterIDPattern.MatchString(s.ClusterID) {
		p.say(at, fmt.Sprintf("cluster id %q must be 32 hexadecimal digits, such as `cellvisor version --new-id` prints", s.ClusterID))
	}
}

// serverAttrs are the attributes of the block "server".
var serverAttrs = []string{"name", "cell", "role", "data_dir", "slots", "sched", "cpus", "memory", "overcommit", "paging", "lend", "scrub", "idle_cpus", "secret_file", "nice"}

func (p *parser) self(top *block, s *Server) {
	c := top.one("server", true)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "server"`, "", c.DefRange, serverAttrs, nil)
	name, nameAt := b.need("name")
	s.Name = ident.ServerName(name)
	s.Role = p.role(b)
	cell, cellAt := b.str("cell", "")
	s.Cell = ident.CellName(cell)
	if cellAt == nil {
		cellAt = &b.at
	}
	p.identity(name, nameAt, cell, cellAt, s.Role)

	var at *hcl.Range
	if s.DataDir, at = b.need("data_dir"); s.DataDir != "" {
		s.DataDir = p.absolute(s.DataDir)
		if st, err := os.Stat(s.DataDir); err == nil && !st.IsDir() {
			p.say(at, fmt.Sprintf("data_dir %s is not a directory", s.DataDir))
		}
	}
	s.Nice = int(b.integer("nice", -10, -20, 19))
	s.Slots = int(b.integer("slots", int64(runtime.NumCPU()), 1, maxSlots))
	s.Sched = Sched(p.choice(b, "sched", string(SchedGang), string(SchedGang), string(SchedHost)))
	s.CPUs = p.cpus(b, s.Slots)
	s.IdleCPUs = IdleCPUs(p.choice(b, "idle_cpus", string(IdleAwake), string(IdleAwake), string(IdleSleep)))
	s.MemoryBytes = p.memory(b, s.Role)
	s.Overcommit = int(b.integer("overcommit", 1, 1, maxOvercommit))
	s.PagingBytes = p.paging(b, s)
	s.Lend = p.choice(b, "lend", "off", "on", "off") == "on"
	s.Scrub = p.scrub(b)
	if s.Role == RoleWitness {
		for _, name := range []string{"slots", "sched", "cpus", "memory", "overcommit", "paging", "lend", "scrub", "idle_cpus"} {
			if a := b.attrs[name]; a != nil {
				p.say(&a.Range, "a witness runs no VMs: remove "+name)
			}
		}
		s.Slots, s.MemoryBytes = 0, 0
	}
}

// cpus returns the CPUs of the slots: none, or one for each at least.
func (p *parser) cpus(b *block, slots int) []int {
	v, at, ok := b.value("cpus", cty.List(cty.Number))
	if !ok {
		return nil
	}
	var out []int
	for _, e := range v.AsValueSlice() {
		n, ok := number(e)
		if !ok || n >= maxCPU || slices.Contains(out, int(n)) {
			p.say(at, fmt.Sprintf("cpus must be different whole numbers from 0 to %d", maxCPU-1))
			return nil
		}
		out = append(out, int(n))
	}
	if len(out) < slots {
		p.say(at, fmt.Sprintf("cpus names %d CPUs for %d slots: name one for each, or leave it out", len(out), slots))
	}
	return out
}

func (p *parser) memory(b *block, role Role) ident.Bytes {
	text, at := b.str("memory", "")
	if text == "" {
		if role == RoleWitness {
			return 0
		}
		return AvailableMemory() * 3 / 4
	}
	n, err := ParseSize(text)
	if err != nil {
		p.say(at, "memory: "+err.Error())
		return 0
	}
	if n < ident.MiB {
		p.say(at, fmt.Sprintf("memory %s is less than 1MiB", n))
	}
	return n
}

// paging returns the most that paging files may take together: all that is promised to guests beyond memory, unless told otherwise.
func (p *parser) paging(b *block, s *Server) ident.Bytes {
	text, at := b.str("paging", "")
	if text == "" {
		return s.MemoryBytes * ident.Bytes(s.Overcommit-1)
	}
	n, err := ParseSize(text)
	switch {
	case err != nil:
		p.say(at, "paging: "+err.Error())
	case s.Overcommit == 1:
		p.say(at, "paging is for servers that promise more memory than they have: set overcommit, or leave it out")
	}
	return n
}

func (p *parser) role(b *block) Role {
	role, at := b.str("role", string(RoleServer))
	switch Role(role) {
	case RoleServer, RoleWitness:
		return Role(role)
	}
	p.say(at, fmt.Sprintf("role %q must be %q or %q", role, RoleServer, RoleWitness))
	return RoleServer
}

// identity checks that a server's name, cell and role belong together.
func (p *parser) identity(name string, nameAt *hcl.Range, cell string, cellAt *hcl.Range, role Role) {
	m := serverPattern.FindStringSubmatch(name)
	if name != "" && m == nil {
		p.say(nameAt, fmt.Sprintf("server name %q must be <cell>-<number>, such as \"a-1\"", name))
	}
	switch {
	case role == RoleWitness && cell != "":
		p.say(cellAt, "a witness belongs to no cell: remove cell")
	case role == RoleServer && cell == "":
		p.say(cellAt, "cell is missing: only a witness is in none")
	case role == RoleServer && !cellPattern.MatchString(cell):
		p.say(cellAt, fmt.Sprintf("cell %q must be 1 to 15 of a-z and 0-9, beginning with a letter", cell))
	case role == RoleServer && m != nil && m[1] != cell:
		p.say(nameAt, fmt.Sprintf("server %q is in cell %q: its name must begin with %q", name, cell, cell+"-"))
	}
}

func (p *parser) listen(top *block, s *Server) {
	c := top.one("listen", true)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "listen"`, "", c.DefRange, []string{"peer", "gossip", "pages", "api", "api_tcp", "metrics"}, nil)
	s.Listen.Peer = p.hostPort(b, "peer", true)
	s.Listen.Gossip = p.hostPort(b, "gossip", true)
	s.Listen.APITCP = p.hostPort(b, "api_tcp", false)
	s.Listen.Metrics = p.hostPort(b, "metrics", false)
	if s.Listen.Peer != "" && s.Listen.Peer == s.Listen.Gossip {
		p.say(&b.attrs["gossip"].Range, "gossip and peer must not share an address")
	}
	host, _, _ := net.SplitHostPort(s.Listen.Peer)
	var at *hcl.Range
	if s.Listen.Pages, at = b.str("pages", host); s.Listen.Pages == "" && s.Listen.Peer != "" {
		p.say(at, "pages is missing: name the host address on which workers serve pages")
	}
	sock, at := b.need("api")
	sock = p.absolute(strings.TrimPrefix(sock, "unix://"))
	if len(sock) > maxSocketLen {
		p.say(at, fmt.Sprintf("the socket path %s has %d bytes, Linux allows %d: choose a shorter one", sock, len(sock), maxSocketLen))
	}
	s.Listen.APIUnix = sock
}

// hostPort returns an address attribute, checked as far as that is possible without binding it.
func (p *parser) hostPort(b *block, name string, needed bool) string {
	var addr string
	var at *hcl.Range
	if needed {
		addr, at = b.need(name)
	} else {
		addr, at = b.str(name, "")
	}
	if addr == "" {
		return ""
	}
	if err := CheckHostPort(addr); err != nil {
		p.say(at, name+": "+err.Error())
	}
	return addr
}

// CheckHostPort tells what is wrong with addr as a host:port with a port that is not 0.
func CheckHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("port %q in %q must be a number from 1 to 65535", port, addr)
	}
	if host == "" {
		return fmt.Errorf("%q lacks its host: name the address to listen on", addr)
	}
	return nil
}

func (p *parser) log(top *block, s *Server) {
	s.Log.Level = "info"
	c := top.one("log", false)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "log"`, "", c.DefRange, []string{"format", "level"}, nil)
	s.Log.Format = p.choice(b, "format", "", "text", "json")
	s.Log.Level = p.choice(b, "level", "info", "debug", "info", "warn", "error")
}

func (p *parser) choice(b *block, name, def string, allowed ...string) string {
	v, at := b.str(name, def)
	if v == def {
		return def
	}
	for _, a := range allowed {
		if v == a {
			return v
		}
	}
	p.say(at, fmt.Sprintf("%s %q must be one of %s", name, v, strings.Join(allowed, ", ")))
	return def
}

func (p *parser) timing(top *block, s *Server) {
	c := top.one("timing", false)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "timing"`, "", c.DefRange, []string{"lease_length", "lease_renew", "heartbeat", "election_min"}, nil)
	t := &s.Timing
	for name, d := range map[string]*time.Duration{
		"lease_length": &t.LeaseLength, "lease_renew": &t.LeaseRenew, "heartbeat": &t.Heartbeat, "election_min": &t.ElectionMin,
	} {
		text, at := b.str(name, "")
		if text == "" {
			continue
		}
		v, err := time.ParseDuration(text)
		if err != nil || v < time.Millisecond || v > time.Minute {
			p.say(at, fmt.Sprintf("%s %q must be a duration from 1ms to 1m, such as \"1.5s\"", name, text))
			continue
		}
		*d = v
	}
	sort.Strings(p.wrong) // the loop above runs in no order
	if t.LeaseLength < 3*t.LeaseRenew {
		p.say(&b.at, fmt.Sprintf("lease_length %v must be at least three times lease_renew %v, or one lost message fences a server", t.LeaseLength, t.LeaseRenew))
	}
	if t.ElectionMin < 3*t.Heartbeat {
		p.say(&b.at, fmt.Sprintf("election_min %v must be at least three times heartbeat %v, or one lost message starts an election", t.ElectionMin, t.Heartbeat))
	}
}

func (p *parser) join(top *block, s *Server) {
	addrs, at := top.strings("join")
	switch {
	case len(addrs) > 0 && len(s.Initial) > 0:
		p.say(at, "a server either begins a cluster (initial blocks) or joins one (join), not both")
	case len(addrs) == 0 && len(s.Initial) == 0 && len(p.wrong) == 0:
		p.say(nil, "neither initial blocks nor join: the server would not know its cluster")
	}
	for _, a := range addrs {
		if err := CheckHostPort(a); err != nil {
			p.say(at, "join: "+err.Error())
		}
	}
	s.Join = addrs
}

// secret reads the secret file, and refuses to do without one beyond the loopback interface.
func (p *parser) secret(top *block, s *Server) {
	c := top.one("server", false)
	if c == nil {
		return
	}
	attrs, _ := c.Body.JustAttributes()
	a := attrs["secret_file"]
	if a == nil {
		if addr := s.offLoopback(); addr != "" {
			p.say(&c.DefRange, fmt.Sprintf("secret_file is missing: without one, peers are trusted, which is allowed on loopback addresses only, and %s is none", addr))
		}
		return
	}
	b := &block{p: p, attrs: attrs}
	var at *hcl.Range
	if s.SecretFile, at = b.file("secret_file"); s.SecretFile == "" {
		p.say(at, "secret_file is empty")
		return
	}
	raw, err := readBounded(s.SecretFile)
	if err != nil {
		p.say(at, "secret_file: "+strings.TrimPrefix(err.Error(), "config: "))
		return
	}
	s.Secret = []byte(strings.TrimSpace(string(raw)))
	if len(s.Secret) < minSecretLen {
		p.say(at, fmt.Sprintf("secret_file %s holds %d bytes, at least %d are needed", s.SecretFile, len(s.Secret), minSecretLen))
	}
}

// offLoopback returns the first address that other machines can reach, or "".
func (s *Server) offLoopback() string {
	for _, addr := range []string{s.Listen.Peer, s.Listen.Gossip, s.Listen.APITCP, net.JoinHostPort(s.Listen.Pages, "1")} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil || host == "" || host == "localhost" {
			continue
		}
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			return host
		}
	}
	return ""
}

// number reads a value that convert has made a cty.Number as an unsigned integer.
func number(v cty.Value) (uint64, bool) {
	f := v.AsBigFloat()
	n, _ := f.Uint64()
	return n, f.IsInt() && f.Sign() >= 0
}

// defaultScrub is how often copies of disks are checked.
const defaultScrub = 24 * time.Hour

func (p *parser) scrub(b *block) time.Duration {
	if text, _ := b.str("scrub", ""); text == "off" {
		return 0
	}
	return p.span(b, "scrub", defaultScrub, time.Second, 365*24*time.Hour)
}
