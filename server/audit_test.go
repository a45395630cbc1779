package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/audit"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/trust"
)

// Every act is in the log, with who, what, its arguments and its end; looking is not; what was refused is. Other servers witness it, and a log
// that is cut off afterwards, head and all, is found out by them.
func TestActsAreRecorded(t *testing.T) {
	c, authority := securedCluster(t, 2)
	a := c.servers[0]
	alice, err := a.dialTCP(keysOf(t, authority, trust.RoleOperator, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close()
	bob, err := a.dialTCP(keysOf(t, authority, trust.RoleViewer, "bob"))
	if err != nil {
		t.Fatal(err)
	}
	defer bob.Close()
	if _, err := alice.API().StopVM(a.ctx(), &api.StopVMRequest{Name: "nothing"}); err == nil {
		t.Error("a VM that is not there was stopped")
	}
	if _, err := bob.API().RemoveVM(a.ctx(), &api.RemoveVMRequest{Name: "nothing"}); err == nil {
		t.Error("a viewer removes")
	}
	if _, err := a.run("web", "", 1, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.StopVM(a.ctx(), &api.StopVMRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
	path := filepath.Join(a.cfg.DataDir, auditFile)
	r, err := audit.VerifyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	find := func(what, who string) (audit.Entry, string) {
		for _, e := range r.Entries {
			if e.What == what && strings.Contains(e.Who, who) {
				for _, d := range r.Entries {
					if d.Of == e.Seq {
						return e, d.Result
					}
				}
				return e, e.Result
			}
		}
		t.Errorf("no %s by %s in %+v", what, who, r.Entries)
		return audit.Entry{}, ""
	}
	if e, result := find("StopVM", "operator alice"); e.Kind != audit.Asked || !strings.Contains(string(e.Args), "nothing") || !strings.HasPrefix(result, "NotFound") {
		t.Errorf("alice: %+v, %s", e, result)
	}
	if e, result := find("RemoveVM", "viewer bob"); e.Kind != audit.Refused || result != "PermissionDenied" {
		t.Errorf("bob: %+v, %s", e, result)
	}
	if e, result := find("RunVM", "uid"); !strings.Contains(string(e.Args), "web") || result != "ok" {
		t.Errorf("run: %+v, %s", e, result)
	}
	for _, e := range r.Entries {
		if e.What == "Status" || e.What == "GetVM" {
			t.Errorf("looking is recorded: %+v", e)
		}
	}
	witness := filepath.Join(c.servers[1].cfg.DataDir, auditFile)
	eventually(t, "b-1 witnesses the log of a-1", func() bool {
		w, err := audit.VerifyFile(witness)
		if err != nil {
			return false
		}
		for _, e := range w.Entries {
			if e.Kind == audit.Witness && e.Head.Server == "a-1" && e.Head.Seq >= r.Head.Seq {
				return len(audit.CrossCheck(map[string]*audit.Report{"a-1": r, "b-1": w})) == 0
			}
		}
		return false
	})
	a.stop()
	for _, f := range []string{path, audit.HeadFile(path)} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	eventually(t, "a-1 begins a new log", func() bool { forged, err := audit.VerifyFile(path); return err == nil && len(forged.Entries) > 0 })
	forged, err := audit.VerifyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := audit.VerifyFile(witness)
	if err != nil {
		t.Fatal(err)
	}
	if wrong := audit.CrossCheck(map[string]*audit.Report{"a-1": forged, "b-1": w}); len(wrong) == 0 {
		t.Error("a log that was removed is not missed")
	}
}

// A drill says every second what is to stay broken: the log has the first time and the end, not what lies between.
func TestRenewalsAreNoActs(t *testing.T) {
	c := newClusterWith(t, 1, func(cfg *config.Server) { cfg.Drills = true })
	c.awaitLive(1, c.servers...)
	a := c.servers[0]
	set := func(lease uint32, faults ...*api.Fault) {
		t.Helper()
		if _, err := a.client.SetFaults(a.ctx(), &api.SetFaultsRequest{Set: true, Faults: faults, LeaseMs: lease}); err != nil {
			t.Fatal(err)
		}
	}
	recorded := func() (asked, healed int) {
		r, err := audit.VerifyFile(filepath.Join(a.cfg.DataDir, auditFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Entries {
			if e.What == "SetFaults" && strings.Contains(e.Result, "healed") {
				healed++
			} else if e.What == "SetFaults" {
				asked++
			}
		}
		return asked, healed
	}
	wedge := &api.Fault{Kind: api.FaultKind_FAULT_KIND_WEDGE, LastsMs: 1}
	for range 5 {
		set(60_000, wedge)
	}
	if _, err := a.client.SetFaults(a.ctx(), &api.SetFaultsRequest{}); err != nil {
		t.Error(err)
	}
	set(0)
	if asked, healed := recorded(); asked != 2 || healed != 0 {
		t.Errorf("%d acts, %d healed", asked, healed)
	}
	set(1, wedge)
	eventually(t, "the end of the lease is recorded", func() bool { _, healed := recorded(); return healed == 1 })
}
