package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/trust"
)

func TestDoctorOnCertificates(t *testing.T) {
	const cluster = "0123456789abcdef0123456789abcdef"
	authority, err := trust.Create(filepath.Join(t.TempDir(), "tls"), cluster, trust.DefaultAuthorityValidity)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string, valid time.Duration) trust.Files {
		f, err := authority.Issue(trust.RoleServer, name, valid, true)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	me := trust.Identity{Cluster: cluster, Role: trust.RoleServer, Name: "a-1"}
	check := func(f trust.Files, ok, needed bool, detail string) {
		t.Helper()
		if c := certificateCheck(f, me, time.Now()); c.OK != ok || !c.OK && c.Needed != needed || !strings.Contains(c.Detail, detail) || !c.OK && c.Fix == "" {
			t.Errorf("%+v, want %q", c, detail)
		}
	}
	check(issue("a-1", trust.DefaultValidity), true, true, "server a-1 of cluster")
	check(issue("a-1", 10*24*time.Hour+time.Minute), false, false, "expires in 10 days")
	check(issue("a-1", -time.Hour), false, true, "expired at")
	check(issue("b-1", trust.DefaultValidity), false, true, "is that of server b-1")
	open := issue("a-1", trust.DefaultValidity)
	if err := os.Chmod(open.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	check(open, false, true, "may be read by others")
	missing := issue("a-1", trust.DefaultValidity)
	missing.Key += ".gone"
	check(missing, false, true, "no such file")
	taken := issue("a-1", trust.DefaultValidity)
	if _, err := authority.Revoke("a-1", "", time.Now()); err != nil {
		t.Fatal(err)
	}
	check(taken, false, true, "revoked")
}
