package cells

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestRevoke checks that the list only grows, takes nothing twice, and refuses what is no serial number as a whole.
func TestRevoke(t *testing.T) {
	f := NewFSM("c", nil, Hooks{})
	n := uint64(0)
	revoke := func(want string, certs ...RevokedCert) {
		t.Helper()
		n++
		a := applyTo(t, f, n, Command{Revoke: &Revoke{Certs: certs, By: "operator alice"}})
		var r RevokeResult
		switch {
		case want == "" && a.Fault == nil:
			t.Fatalf("%v was not refused", certs)
		case want == "":
			return
		case a.Fault != nil:
			t.Fatal(a.Fault)
		}
		if err := json.Unmarshal(a.Result, &r); err != nil || fmt.Sprintf("%d of %d", r.Added, r.Total) != want {
			t.Fatalf("%s, %v; want %s", a.Result, err, want)
		}
	}
	revoke("2 of 2", RevokedCert{Serial: "b2", UnixMs: 5}, RevokedCert{Serial: "a1", UnixMs: 6})
	before := f.State().Clone()
	revoke("0 of 2", RevokedCert{Serial: "b2", UnixMs: 9})
	revoke("1 of 3", RevokedCert{Serial: "b2"}, RevokedCert{Serial: "0c"}, RevokedCert{Serial: "0c"})
	for _, bad := range []string{"", "B2", "x", "-1", strings.Repeat("1", maxSerialDigits+1)} {
		revoke("", RevokedCert{Serial: "d4"}, RevokedCert{Serial: bad})
	}
	if got := fmt.Sprint(f.State().Revoked); got != "[{0c 0} {a1 6} {b2 5}]" {
		t.Errorf("in force: %s", got)
	}
	if len(before.Revoked) != 2 || before.Revoked[0].Serial != "a1" {
		t.Errorf("a copy of the state has changed: %v", before.Revoked)
	}
	if events, _ := f.EventsSince(0, 100); len(events) != 2 {
		t.Errorf("%d events, for two changes", len(events))
	}
	many := make([]RevokedCert, MaxRevoked)
	for i := range many {
		many[i].Serial = fmt.Sprintf("%x", i+0x1000)
	}
	revoke("", many...)
	revoke(fmt.Sprintf("%d of %d", MaxRevoked-3, MaxRevoked), many[3:]...)
}
