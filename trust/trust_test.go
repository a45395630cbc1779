package trust

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const cluster = "0123456789abcdef0123456789abcdef"

func authority(t *testing.T, cluster string) *Authority {
	t.Helper()
	a, err := Create(filepath.Join(t.TempDir(), "tls"), cluster, DefaultAuthorityValidity)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, role Role, name string, valid time.Duration) Files {
	t.Helper()
	f, err := a.Issue(role, name, valid, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func load(t *testing.T, f Files) *Credentials {
	t.Helper()
	c, err := Load(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// meet runs a TLS connection between two holders and returns whom the server saw and what each side said.
func meet(server, client *Credentials) (id Identity, serverErr, clientErr error) {
	return meetConfig(server, client.ClientTLS())
}

// careless are the settings of a client that asks nothing of the server.
func careless(c *Credentials) *tls.Config {
	cfg := c.ClientTLS()
	cfg.VerifyConnection = nil
	return cfg
}

func meetConfig(server *Credentials, client *tls.Config) (id Identity, serverErr, clientErr error) {
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := tls.Client(far, client)
		defer far.Close()
		if clientErr = c.Handshake(); clientErr == nil {
			_, clientErr = c.Read(make([]byte, 1))
		}
	}()
	s := tls.Server(near, server.ServerTLS())
	if serverErr = s.Handshake(); serverErr == nil {
		id, serverErr = PeerOf(s.ConnectionState())
		_, _ = s.Write([]byte{1})
	}
	near.Close()
	<-done
	return id, serverErr, clientErr
}

func TestIdentitiesAcrossTLS(t *testing.T) {
	a := authority(t, cluster)
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	for _, role := range []Role{RoleServer, RoleOperator, RoleViewer} {
		client := load(t, issue(t, a, role, "who-"+string(role), DefaultValidity))
		id, serr, cerr := meet(server, client)
		if serr != nil || cerr != nil || id != (Identity{Cluster: cluster, Role: role, Name: "who-" + string(role)}) {
			t.Errorf("%s: %v, %v, %v", role, id, serr, cerr)
		}
	}
	if id, _, err := meet(load(t, issue(t, a, RoleOperator, "mallory", DefaultValidity)), server); err == nil {
		t.Errorf("a client talks to %v as if it were a server", id)
	}
}

// Whoever has no business here is refused, whatever the reason.
func TestStrangersAreRefused(t *testing.T) {
	a, other, foreign := authority(t, cluster), authority(t, cluster), authority(t, strings.Repeat("f", 32))
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	later := load(t, issue(t, a, RoleOperator, "late", time.Hour))
	server.clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, serr, cerr := meet(server, later); !errors.Is(serr, ErrRefused) || !strings.Contains(serr.Error(), "expired") || cerr == nil {
		t.Errorf("an expired certificate: %v, %v", serr, cerr)
	}
	server.clock = time.Now
	if _, serr, _ := meetConfig(server, careless(load(t, issue(t, other, RoleOperator, "x", DefaultValidity)))); !errors.Is(serr, ErrRefused) {
		t.Errorf("a certificate of another authority: %v", serr)
	}
	f := issue(t, foreign, RoleOperator, "y", DefaultValidity)
	if _, serr, _ := meetConfig(server, careless(load(t, f))); !errors.Is(serr, ErrRefused) {
		t.Errorf("a certificate of another cluster: %v", serr)
	}
	near, far := net.Pipe()
	go func() {
		_, _ = far.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		_, _ = far.Read(make([]byte, 64))
		far.Close()
	}()
	if err := tls.Server(near, server.ServerTLS()).Handshake(); err == nil {
		t.Error("garbage is taken for TLS")
	}
	near.Close()
	none := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	here, there := net.Pipe()
	go func() {
		c := tls.Client(there, none)
		if c.Handshake() == nil {
			_, _ = c.Read(make([]byte, 1))
		}
		there.Close()
	}()
	if err := tls.Server(here, server.ServerTLS()).Handshake(); err == nil {
		t.Error("a client without a certificate comes in")
	}
	here.Close()
}

// A certificate of the same authority's making, but for another cluster, is refused although its chain is right.
func TestClusterCountsNotOnlyTheChain(t *testing.T) {
	a := authority(t, cluster)
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	b := *a
	b.Cluster = strings.Repeat("e", 32)
	client := load(t, issue(t, &b, RoleOperator, "z", DefaultValidity))
	if _, serr, _ := meetConfig(server, careless(client)); !errors.Is(serr, ErrRefused) || !strings.Contains(serr.Error(), "is of cluster") {
		t.Errorf("%v", serr)
	}
}

// During a rotation old and new certificates both work, without a restart of anyone; after it only new ones do.
func TestRotation(t *testing.T) {
	a := authority(t, cluster)
	sf := issue(t, a, RoleServer, "a-1", DefaultValidity)
	of := issue(t, a, RoleOperator, "old", DefaultValidity)
	server, old := load(t, sf), load(t, of)
	if err := a.Rotate(DefaultAuthorityValidity); err != nil {
		t.Fatal(err)
	}
	fresh := load(t, issue(t, a, RoleOperator, "fresh", DefaultValidity))
	for _, c := range []*Credentials{old, fresh} {
		if _, serr, cerr := meet(server, c); serr != nil || cerr != nil {
			t.Errorf("in the overlap: %v: %v, %v", c.Identity(), serr, cerr)
		}
	}
	if err := a.Rotate(DefaultAuthorityValidity); err == nil {
		t.Error("a third authority")
	}
	again, err := Open(a.Dir)
	if err != nil || len(again.Trusted) != 2 {
		t.Fatalf("read back: %v, %v", again, err)
	}
	if _, err := again.Issue(RoleServer, "a-1", DefaultValidity, true); err != nil {
		t.Fatal(err)
	}
	if err := again.Retire(); err != nil {
		t.Fatal(err)
	}
	if _, serr, cerr := meet(server, fresh); serr != nil || cerr != nil {
		t.Errorf("after it, the new one: %v, %v", serr, cerr)
	}
	if _, serr, _ := meetConfig(server, careless(old)); !errors.Is(serr, ErrRefused) {
		t.Errorf("after it, the old one: %v", serr)
	}
	list, err := again.List(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, r := range list {
		states[r.Name] = r.State
	}
	if states["ca"] != "valid" || states["a-1"] != "valid" || states["fresh"] != "valid" || states["old"] != "untrusted" {
		t.Errorf("listed: %v", states)
	}
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	a := authority(t, cluster)
	f := issue(t, a, RoleServer, "a-1", DefaultValidity)
	entries, err := os.ReadDir(a.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), st.Mode(), err)
		}
	}
	if err := os.Chmod(f.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(f); err == nil || !strings.Contains(err.Error(), "may be read by others") {
		t.Errorf("a key that others may read: %v", err)
	}
}

func TestMistakes(t *testing.T) {
	a := authority(t, cluster)
	if _, err := Create(a.Dir, cluster, time.Hour); !errors.Is(err, ErrExists) {
		t.Errorf("a second authority in its place: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("an empty directory: %v", err)
	}
	issue(t, a, RoleViewer, "v", time.Hour)
	if _, err := a.Issue(RoleViewer, "v", time.Hour, false); !errors.Is(err, ErrExists) {
		t.Errorf("issued twice: %v", err)
	}
	for _, name := range []string{"", "ca", "../x", "A", "a b"} {
		if _, err := a.Issue(RoleViewer, name, time.Hour, false); err == nil {
			t.Errorf("a certificate for %q", name)
		}
	}
	if _, err := a.Issue("king", "k", time.Hour, false); err == nil {
		t.Error("a certificate for a king")
	}
	f := issue(t, a, RoleViewer, "dead", -time.Hour)
	if _, err := Load(f); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired certificate of our own: %v", err)
	}
}
