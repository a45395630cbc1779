package local

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/trust"
)

// Bounds of a local cluster.
const (
	MaxCells   = 26 // named a to z
	MaxServers = 32 // in one cell
	MaxSlow    = 40 // a lease of a minute
	maxVoters  = 5
	// maxDirLen leaves room for the longest socket path below the directory, DIR/witness-1/api.sock, within the 107 bytes that Linux allows.
	maxDirLen = 88
)

// Shape says what cluster is wanted. Zero values mean "as it is" for a directory that holds a cluster, else the default.
type Shape struct {
	Cells   int
	PerCell int
	Slots   int
	Sched   config.Sched // "" is gang
	Memory  ident.Bytes  // of each server

	Lend       bool // servers of a new cluster lend each other memory
	Overcommit int  // a new cluster's servers promise so many times that much; 0 is 1

	Drills     bool // drills may break the servers; one that exists and refuses them is changed
	PlainPages bool // a new cluster's page traffic is not encrypted
	NoJail     bool // a new cluster's workers are not jailed

	Lease time.Duration // a new cluster's lease length; 0: the default
	Slow  int           // a new cluster's timing is so many times slower than the default; 0 is 1

	LogLevel string // of a new cluster's servers; "" is info
}

// timing is the default with the lease that is wanted.
func timing(want Shape) config.Timing {
	t := config.DefaultTiming()
	for _, d := range []*time.Duration{&t.LeaseLength, &t.LeaseRenew, &t.Heartbeat, &t.ElectionMin} {
		*d *= time.Duration(max(1, want.Slow))
	}
	if want.Lease != 0 {
		t.LeaseLength = want.Lease
	}
	return t
}

// open returns the stopped cluster in dir, made anew if there is none. It refuses a directory that is not ours, holds other things, or whose
// cluster runs or has another shape. The caller holds the directory's lock.
func open(dir string, want Shape) (*Cluster, error) {
	running, err := Find(dir)
	if err != nil {
		return nil, err
	}
	if len(running) > 0 {
		return nil, fmt.Errorf("a cluster runs in %s already (%d processes, the first is %d): use it, take it down with `cellvisor down --dir %s`, or name another --dir",
			dir, len(running), running[0].PID, dir)
	}
	c, err := Load(dir)
	switch {
	case err == nil:
		if err := c.agrees(want); err != nil || !want.Drills || c.Drills {
			return c, err
		}
		return c, c.allowDrills()
	case !errors.Is(err, ErrNoCluster):
		return nil, err
	}
	if name := foreign(dir); name != "" {
		return nil, fmt.Errorf("%s is not empty (it holds %s) and holds no cluster: name another --dir", dir, name)
	}
	return create(dir, want)
}

// claim makes the directory, for us alone, and refuses one that another user could have prepared.
func claim(dir string) error {
	if len(dir) > maxDirLen {
		return fmt.Errorf("the path %s has %d bytes; Unix sockets below it need at most %d: name a shorter --dir", dir, len(dir), maxDirLen)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to another user (uid %d): name another --dir", dir, sys.Uid)
	}
	return nil
}

// foreign returns the name of something in dir that no cluster put there.
func foreign(dir string) string {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != lockFile {
			return e.Name()
		}
	}
	return ""
}

// allowDrills changes the configurations of a stopped cluster so that drills may break its servers.
func (c *Cluster) allowDrills() error {
	for _, s := range c.Servers {
		cfg, err := config.Load(s.Config)
		if err != nil {
			return err
		}
		cfg.Drills = true
		if err := os.WriteFile(s.Config, config.Format(cfg), 0o600); err != nil {
			return err
		}
	}
	c.Drills = true
	return c.save()
}

// agrees tells whether the cluster has the wanted shape.
func (c *Cluster) agrees(want Shape) error {
	for _, d := range []struct {
		what       string
		want, have int
	}{
		{"cells", want.Cells, c.Cells},
		{"servers a cell", want.PerCell, c.PerCell},
		{"slots", want.Slots, c.Slots},
		{"bytes of memory", int(want.Memory), int(c.Memory)},
	} {
		if d.want != 0 && d.want != d.have {
			return fmt.Errorf("the cluster in %s has %d %s, not %d: leave the option out to start it as it is, `cellvisor down --purge --dir %s` to remove it, or name another --dir",
				c.Dir, d.have, d.what, d.want, c.Dir)
		}
	}
	if want.Sched != "" && string(want.Sched) != cmp.Or(c.Sched, string(config.SchedGang)) {
		return fmt.Errorf("the cluster in %s has the scheduler %s, not %s: leave the option out, or name another --dir", c.Dir, cmp.Or(c.Sched, string(config.SchedGang)), want.Sched)
	}
	return nil
}

// create lays out a new cluster: names, addresses, secret, certificates, configurations.
func create(dir string, want Shape) (*Cluster, error) {
	want = want.withDefaults()
	c := &Cluster{
		Version: clusterVersion, ID: randomHex(16), Name: "local", Dir: dir,
		Cells: want.Cells, PerCell: want.PerCell, Slots: want.Slots, Sched: string(want.Sched), Memory: uint64(want.Memory), Drills: want.Drills,
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(randomHex(32)+"\n"), 0o600); err != nil {
		return nil, err
	}
	peers, err := layout(want)
	if err != nil {
		return nil, err
	}
	apis, err := freePorts(len(peers), peers)
	if err != nil {
		return nil, err
	}
	authority, err := trust.Create(filepath.Join(dir, tlsDir), c.ID, trust.DefaultAuthorityValidity)
	if err != nil {
		return nil, err
	}
	for i, p := range peers {
		s := Server{
			Name: string(p.Name), Cell: string(p.Cell), Role: string(p.Role), Peer: p.Peer, APITCP: loopbackAddr(apis[i]),
			Config:  filepath.Join(dir, string(p.Name)+".hcl"),
			Log:     filepath.Join(dir, string(p.Name)+".log"),
			DataDir: filepath.Join(dir, string(p.Name)),
		}
		cfg := &config.Server{
			ClusterID: c.ID, ClusterName: c.Name, Drills: want.Drills, Name: p.Name, Cell: p.Cell, Role: p.Role,
			DataDir: s.DataDir, Slots: want.Slots, Sched: want.Sched, CPUs: slotCPUs(i, want.Slots), MemoryBytes: want.Memory, Overcommit: max(1, want.Overcommit), Lend: want.Lend, Nice: -10,
			SecretFile: filepath.Join(dir, "secret"), PageEncryption: !want.PlainPages, Jail: !want.NoJail,
			Listen: config.Listen{Peer: p.Peer, Gossip: p.Gossip, Pages: "127.0.0.1", APIUnix: filepath.Join(s.DataDir, "api.sock"),
				APITCP: s.APITCP},
			Initial: peers,
			Timing:  timing(want),
			Log:     config.Log{Format: "text", Level: cmp.Or(want.LogLevel, "info")},
		}
		files, err := authority.Issue(trust.RoleServer, s.Name, trust.DefaultAuthorityValidity, false)
		if err != nil {
			return nil, err
		}
		cfg.TLS = config.TLS(files)
		s.API = "unix://" + cfg.Listen.APIUnix
		if err := os.MkdirAll(s.DataDir, 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(s.Config, config.Format(cfg), 0o600); err != nil {
			return nil, err
		}
		c.Servers = append(c.Servers, s)
	}
	if err := c.issueClients(authority); err != nil {
		return nil, err
	}
	return c, c.save()
}

// Names in a cluster's directory: of that with the certificates, and of those that clients can use over TCP.
const (
	tlsDir       = "tls"
	operatorName = "operator"
	viewerName   = "viewer"
)

// issueClients makes a certificate for each of a client's roles, with a context that uses it.
func (c *Cluster) issueClients(authority *trust.Authority) error {
	var addrs []string
	for _, s := range c.Servers {
		addrs = append(addrs, s.APITCP)
	}
	for name, role := range map[string]trust.Role{operatorName: trust.RoleOperator, viewerName: trust.RoleViewer} {
		files, err := authority.Issue(role, name, trust.DefaultAuthorityValidity, false)
		if err != nil {
			return err
		}
		text := config.FormatContext(&config.Context{Addr: strings.Join(addrs, ","), TLS: config.TLS(files)})
		if err := os.WriteFile(filepath.Join(authority.Dir, name+".hcl"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// slotCPUs gives the slots of the i-th server on this machine CPUs, so that servers share as few as possible. Where a server has more slots than
// there are CPUs, it gets none.
func slotCPUs(i, slots int) []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil || slots > set.Count() {
		return nil
	}
	var all, own []int
	for c := range len(set) * 64 {
		if set.IsSet(c) {
			all = append(all, c)
		}
	}
	for s := range slots {
		own = append(own, all[(i*slots+s)%len(all)])
	}
	return own
}

func (w Shape) withDefaults() Shape {
	if w.Cells == 0 {
		w.Cells = 3
	}
	if w.PerCell == 0 {
		w.PerCell = 1
	}
	if w.Slots == 0 {
		w.Slots = 4
	}
	if w.Memory == 0 {
		const unit = 64 * ident.MiB
		share := config.AvailableMemory() * 3 / 4 / ident.Bytes(w.Cells*w.PerCell)
		w.Memory = max(share/unit*unit, unit)
	}
	return w
}

// layout names the servers, cell by cell, and gives them IDs, votes and addresses. Two cells get a witness: of two voters, neither could go
// on without the other.
func layout(want Shape) ([]config.Peer, error) {
	var peers []config.Peer
	add := func(name, cell string, role config.Role) {
		peers = append(peers, config.Peer{
			ID: ident.ServerID(len(peers) + 1), Name: ident.ServerName(name), Cell: ident.CellName(cell), Role: role,
		})
	}
	for cell := range want.Cells {
		letter := string(rune('a' + cell))
		for n := range want.PerCell {
			add(fmt.Sprintf("%s-%d", letter, n+1), letter, config.RoleServer)
		}
	}
	if want.Cells == 2 {
		add("witness-1", "", config.RoleWitness)
	}
	giveVotes(peers, want)
	ports, err := freePorts(2*len(peers), nil)
	if err != nil {
		return nil, err
	}
	for i := range peers {
		peers[i].Peer, peers[i].Gossip = loopbackAddr(ports[2*i]), loopbackAddr(ports[2*i+1])
	}
	return peers, nil
}

// giveVotes spreads an odd number of votes over the cells: first one to each cell, then a second, and so on. An even number would bear no
// more losses than the odd one below it.
func giveVotes(peers []config.Peer, want Shape) {
	votes := min(len(peers), maxVoters)
	if votes%2 == 0 {
		votes--
	}
	if last := &peers[len(peers)-1]; last.Role == config.RoleWitness {
		last.Voter = true
		votes--
	}
	for n := range want.PerCell {
		for cell := range want.Cells {
			if votes > 0 {
				peers[cell*want.PerCell+n].Voter = true
				votes--
			}
		}
	}
}

func loopbackAddr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// freePorts returns ports that nobody on the loopback interface uses, TCP or UDP, nor any of the peers will. They lie below the range from which the kernel gives
// ports to outgoing connections, so that none is lost between this look and the server's start.
func freePorts(n int, peers []config.Peer) ([]int, error) {
	const low, high, tries = 10000, 32000, 2000
	seen := make(map[int]bool)
	for _, p := range peers {
		for _, addr := range []string{p.Peer, p.Gossip} {
			_, port, _ := net.SplitHostPort(addr)
			n, _ := strconv.Atoi(port)
			seen[n] = true
		}
	}
	var out []int
	for range tries {
		if len(out) == n {
			return out, nil
		}
		r, err := rand.Int(rand.Reader, big.NewInt(high-low))
		if err != nil {
			return nil, err
		}
		port := low + int(r.Int64())
		if !seen[port] && portFree(port) {
			out = append(out, port)
		}
		seen[port] = true
	}
	return nil, fmt.Errorf("found only %d of %d free ports between %d and %d on 127.0.0.1", len(out), n, low, high)
}

func portFree(port int) bool {
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	u.Close()
	return true
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the program rather than return an error
	return hex.EncodeToString(b)
}
