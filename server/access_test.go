package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/trust"
)

// Every call of the API is classified, and nothing that does not exist is.
func TestAccessIsComplete(t *testing.T) {
	known := map[string]bool{"ServerReflectionInfo": true}
	for _, m := range api.Cellvisor_ServiceDesc.Methods {
		known[m.MethodName] = true
	}
	for _, m := range api.Cellvisor_ServiceDesc.Streams {
		known[m.StreamName] = true
	}
	for m := range known {
		if access[m] == 0 {
			t.Errorf("call %s is not classified in the table access: it is refused to everyone", m)
		}
	}
	for m := range access {
		if !known[m] {
			t.Errorf("the table access has %s, which is no call", m)
		}
	}
}

// securedCluster has certificates for its servers, and an authority to make others.
func securedCluster(t *testing.T, n int) (*testCluster, *trust.Authority) {
	t.Helper()
	authority, err := trust.Create(filepath.Join(t.TempDir(), "tls"), strings.Repeat("c1", 16), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := newClusterWith(t, n, func(cfg *config.Server) {
		cfg.Listen.APITCP = freeAddr(t)
		cfg.TLS = config.TLS(issued(t, authority, trust.RoleServer, string(cfg.Name)))
	})
	c.awaitLive(n, c.servers...)
	return c, authority
}

func issued(t *testing.T, a *trust.Authority, role trust.Role, name string) trust.Files {
	t.Helper()
	f, err := a.Issue(role, name, time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func keysOf(t *testing.T, a *trust.Authority, role trust.Role, name string) *tls.Config {
	t.Helper()
	c, err := trust.Load(issued(t, a, role, name))
	if err != nil {
		t.Fatal(err)
	}
	return c.ClientTLS()
}

func (s *testServer) dialTCP(keys *tls.Config) (*api.Client, error) {
	return api.DialTLS(s.ctx(), s.cfg.Listen.APITCP, keys)
}

// An operator acts and a viewer looks, by their certificates; whoever has none that counts gets no answer. Nothing moves by any of the refused.
func TestHostileClientsOfTheAPI(t *testing.T) {
	c, authority := securedCluster(t, 1)
	s := c.servers[0]

	viewer, err := s.dialTCP(keysOf(t, authority, trust.RoleViewer, "bob"))
	if err != nil {
		t.Fatal(err)
	}
	defer viewer.Close()
	if _, err := viewer.API().Status(s.ctx(), &api.StatusRequest{}); err != nil {
		t.Errorf("a viewer may not look: %v", err)
	}
	for what, call := range map[string]func() error{
		"cordon": func() error { _, err := viewer.API().Cordon(s.ctx(), &api.CordonRequest{}); return err },
		"stop":   func() error { _, err := viewer.API().StopVM(s.ctx(), &api.StopVMRequest{Name: "x"}); return err },
		"end":    func() error { _, err := viewer.API().StopServer(s.ctx(), &api.StopServerRequest{}); return err },
		"run": func() error {
			st, err := viewer.API().RunVM(s.ctx())
			if err == nil {
				_, err = st.CloseAndRecv()
			}
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "viewer bob may look but not act") {
			t.Errorf("a viewer's %s: %v", what, err)
		}
	}
	operator, err := s.dialTCP(keysOf(t, authority, trust.RoleOperator, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	if _, err := operator.API().StopVM(s.ctx(), &api.StopVMRequest{Name: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("an operator's stop: %v", err)
	}

	other, err := trust.Create(filepath.Join(t.TempDir(), "tls"), strings.Repeat("c1", 16), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	stranger := keysOf(t, other, trust.RoleOperator, "mallory")
	stranger.VerifyConnection = nil
	late := keysOf(t, authority, trust.RoleOperator, "late")
	expired, err := authority.Issue(trust.RoleOperator, "expired", -time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(expired.Cert, expired.Key)
	if err != nil {
		t.Fatal(err)
	}
	late.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	for what, keys := range map[string]*tls.Config{
		"nobody": nil, "no certificate": {InsecureSkipVerify: true}, "another authority": stranger, "expired": late,
	} {
		if cl, err := s.dialTCP(keys); err == nil {
			cl.Close()
			t.Errorf("%s: has come in", what)
		}
	}
	garbage(t, s.cfg.Listen.APITCP)

	// What was good when it connected is looked at again.
	if _, err := authority.Revoke("alice", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := operator.API().StopVM(s.ctx(), &api.StopVMRequest{Name: "none"}); err == nil || status.Code(err) == codes.NotFound {
		t.Errorf("a revoked operator's stop: %v", err)
	}
	taken, err := trust.Load(authority.Files("alice"))
	if err != nil {
		t.Fatal(err)
	}
	if cl, err := s.dialTCP(taken.ClientTLS()); err == nil {
		cl.Close()
		t.Error("a revoked operator has come in")
	}
	eventually(t, "revoked ones are counted", func() bool {
		r, err := s.client.DebugCounters(s.ctx(), &api.DebugCountersRequest{})
		return err == nil && r.Counters["api.revoked"] >= 1 && r.Counters["api.ended"] >= 1
	})
	eventually(t, "strangers are counted", func() bool {
		r, err := s.client.DebugCounters(s.ctx(), &api.DebugCountersRequest{})
		return err == nil && r.Counters["api.strangers"] >= 4 && r.Counters["api.denied"] >= 4
	})
	if st := s.status(); st == nil || st.VmsTotal != 0 || st.ServersLive != 1 {
		t.Errorf("something moved: %v", st)
	}
}

// What the authority takes back is refused by every server as soon as one of them was told, without the list being copied anywhere; a list that the
// authority has not signed changes nothing.
func TestRevocationIsAgreed(t *testing.T) {
	c, authority := securedCluster(t, 2)
	alice := authority.Files("alice")
	issued(t, authority, trust.RoleOperator, "alice")
	apart := t.TempDir() // where the authority's files are kept, which no server sees
	for _, f := range []string{filepath.Join(authority.Dir, "ca.crt"), filepath.Join(authority.Dir, "ca.key"), alice.Cert} {
		raw, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(apart, filepath.Base(f)), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	keys, err := trust.Load(alice)
	if err != nil {
		t.Fatal(err)
	}
	clients := make([]*api.Client, len(c.servers))
	for i, s := range c.servers {
		if clients[i], err = s.dialTCP(keys.ClientTLS()); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close()
	}
	kept, err := trust.Open(apart)
	if err == nil {
		_, err = kept.Revoke("alice", "", time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(apart, trust.RevokedFile))
	if err != nil {
		t.Fatal(err)
	}
	s := c.servers[0]
	for _, bad := range [][]byte{nil, []byte("no list"), list[:len(list)/2], strangersList(t)} {
		if _, err := s.client.Revoke(s.ctx(), &api.RevokeRequest{List: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a bad list: %v", err)
		}
	}
	r, err := clients[0].API().Revoke(s.ctx(), &api.RevokeRequest{List: list})
	if err != nil || r.Added != 1 || r.Total != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	for i, other := range c.servers {
		eventually(t, "alice's connection ends", func() bool {
			_, err := clients[i].API().StopVM(s.ctx(), &api.StopVMRequest{Name: "none"})
			return err != nil && status.Code(err) != codes.NotFound
		})
		eventually(t, "alice is refused", func() bool {
			if late, err := other.dialTCP(keys.ClientTLS()); err == nil {
				late.Close()
			}
			n, err := other.client.DebugCounters(s.ctx(), &api.DebugCountersRequest{})
			return err == nil && n.Counters["api.revoked"] >= 1
		})
	}
	if r, err := s.client.Revoke(s.ctx(), &api.RevokeRequest{List: list}); err != nil || r.Added != 0 || r.Total != 1 {
		t.Errorf("the same list again: %v, %v", r, err)
	}
}

// strangersList is signed by an authority that nobody trusts.
func strangersList(t *testing.T) []byte {
	t.Helper()
	other, err := trust.Create(filepath.Join(t.TempDir(), "tls"), strings.Repeat("c1", 16), time.Hour)
	if err == nil {
		_, err = other.Revoke("", "5f", time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(other.Dir, trust.RevokedFile))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// garbage sends bytes that make no sense, and returns when the other side has hung up.
func garbage(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	junk := make([]byte, 4096)
	rand.Read(junk)
	_, _ = conn.Write(junk)
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		if _, err := conn.Read(junk); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("%s still listens to garbage", addr)
			}
			return
		}
	}
}

// A server speaks for itself only: with another's certificate, an operator's, or none, it is refused on the monitor plane although it
// knows the secret.
func TestHostilePeers(t *testing.T) {
	c, authority := securedCluster(t, 2)
	a := c.servers[0]
	garbage(t, a.cfg.Listen.Peer)
	mallory, err := trust.Load(issued(t, authority, trust.RoleOperator, "mallory"))
	if err != nil {
		t.Fatal(err)
	}
	third, err := trust.Load(issued(t, authority, trust.RoleServer, "c-1"))
	if err != nil {
		t.Fatal(err)
	}
	for what, wrap := range map[string]func(net.Conn, bool) (net.Conn, error){"no TLS": nil, "an operator": mallory.Wrap, "server c-1 as b-1": third.Wrap} {
		p, err := link.ListenPeers(link.PeersConfig{
			ClusterID: a.cfg.ClusterID, Self: 2, Secret: a.cfg.Secret, ListenAddr: "127.0.0.1:0", Handler: nobody{}, Wrap: wrap,
			Stamp: func() (ident.Incarnation, ident.Epoch) { return 0, 0 },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(a.ctx(), 10*time.Second)
		if _, err := p.Call(ctx, a.cfg.Listen.Peer, 0, nil); err == nil {
			t.Errorf("%s: was let in", what)
		}
		cancel()
		p.Close()
	}
	eventually(t, "they are counted", func() bool {
		r, err := a.client.DebugCounters(a.ctx(), &api.DebugCountersRequest{})
		return err == nil && r.Counters["peers.bad_handshakes"] >= 4
	})
	if st := a.status(); st == nil || st.ServersLive != 2 || !st.Quorum {
		t.Errorf("the cluster suffered: %v", st)
	}
}
