package trust

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRevoke(t *testing.T) {
	a := authority(t, cluster)
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	alice := load(t, issue(t, a, RoleOperator, "alice", DefaultValidity))
	bob := load(t, issue(t, a, RoleOperator, "bob", DefaultValidity))
	for _, c := range []*Credentials{alice, bob} {
		if _, serr, _ := meet(server, c); serr != nil {
			t.Fatal(serr)
		}
	}
	if whose, err := a.Revoke("alice", "", time.Now()); err != nil || whose != "operator alice" {
		t.Fatalf("%q, %v", whose, err)
	}
	if _, serr, _ := meet(server, alice); !errors.Is(serr, ErrRevoked) {
		t.Errorf("a revoked certificate: %v", serr)
	}
	if _, serr, _ := meet(server, bob); serr != nil {
		t.Errorf("another's: %v", serr)
	}
	if _, err := a.Revoke("alice", "", time.Now()); !errors.Is(err, ErrRevoked) {
		t.Errorf("twice: %v", err)
	}
	if _, err := a.Revoke("nobody", "", time.Now()); err == nil {
		t.Error("nobody was revoked")
	}
	if _, err := a.Revoke("", "no number", time.Now()); err == nil {
		t.Error("no number was revoked")
	}

	// Another certificate of the same name is good, and the list outlives a rotation.
	renewed, err := a.Issue(RoleOperator, "alice", DefaultValidity, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, serr, _ := meet(server, load(t, renewed)); serr != nil {
		t.Errorf("her next one: %v", serr)
	}
	if err := a.Rotate(DefaultAuthorityValidity); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a-1", "bob"} {
		role := RoleOperator
		if name == "a-1" {
			role = RoleServer
		}
		if _, err := a.Issue(role, name, DefaultValidity, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Retire(); err != nil {
		t.Fatal(err)
	}
	list, err := a.List(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke("bob", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	known, crl, err := readRevoked(a.Files("bob").CA, a.Trusted)
	if err != nil || len(known) != 2 || crl.Number.Int64() != 3 {
		t.Errorf("%v of %d certificates, %v, %v", known, len(list), crl, err)
	}
	if _, serr, _ := meet(server, bob); !errors.Is(serr, ErrRevoked) {
		t.Errorf("bob: %v", serr)
	}
}

// A list that nobody trusted has signed, or that is damaged, leaves the one in force that was.
func TestForeignList(t *testing.T) {
	a := authority(t, cluster)
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	alice := load(t, issue(t, a, RoleOperator, "alice", DefaultValidity))
	if _, err := a.Revoke("alice", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, serr, _ := meet(server, alice); !errors.Is(serr, ErrRevoked) {
		t.Fatal(serr)
	}
	other := authority(t, cluster)
	issue(t, other, RoleOperator, "bob", DefaultValidity)
	if _, err := other.Revoke("bob", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other.Dir, RevokedFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{foreign, []byte("damaged")} {
		if err := replaceFile(filepath.Join(a.Dir, RevokedFile), text); err != nil {
			t.Fatal(err)
		}
		if _, serr, _ := meet(server, alice); !errors.Is(serr, ErrRevoked) {
			t.Errorf("%.10s: %v", text, serr)
		}
		if server.Fault() == nil {
			t.Errorf("%.10s: no fault is told", text)
		}
	}
}

// A connection ends once the certificate at its other end is revoked.
func TestConnectionEnds(t *testing.T) {
	a := authority(t, cluster)
	server := load(t, issue(t, a, RoleServer, "a-1", DefaultValidity))
	other := load(t, issue(t, a, RoleServer, "b-1", DefaultValidity))
	near, far := net.Pipe()
	s, err := server.Wrap(near, false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := other.Wrap(far, true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1)
	if _, err := io.ReadFull(s, buf); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke("b-1", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Read(buf)
	}
	if !errors.Is(err, ErrRevoked) {
		t.Errorf("the connection ends with %v", err)
	}
	<-done
	c.Close()
}
