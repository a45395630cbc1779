package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drills"
)

func load(t *testing.T, body string) *Program {
	t.Helper()
	p, err := Load("test.star", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func runOn(t *testing.T, f *fake, body string) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rep, err := Run(ctx, load(t, body), fakeCluster{f}, f, Options{Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, journalFile)); rep.Healing.OK != errors.Is(err, os.ErrNotExist) {
		t.Errorf("healing ok: %t, but the journal: %v", rep.Healing.OK, err)
	}
	return rep
}

const loseB = `
"""Loses b."""
def drill():
    p = vm("p", span = ["b"], protect = "replica")
    q = vm("q", span = ["b"], payload = "idle")
    steady(counting(p))
    kill("b")
    expect(recovered(p), within = "5s")
    expect(lambda: q.state == "lost" and "cell b" in q.reason, within = "5s")
    expect(grows(p, by = 5), within = "5s")
    restart("b")
    expect(live("b"))
`

func TestPasses(t *testing.T) {
	f := newFake(t)
	rep := runOn(t, f, loseB)
	if rep.Verdict != Passed || !rep.Healing.OK {
		t.Fatalf("%s: %s; healing %+v", rep.Verdict, rep.Why, rep.Healing)
	}
	if len(f.vms) != 0 {
		t.Errorf("VMs are left: %v", f.vms)
	}
	if len(rep.Lost) != 1 || rep.Lost[0].VM != "q" || !strings.Contains(rep.Lost[0].Reason, "cell b lost") {
		t.Errorf("lost: %+v", rep.Lost)
	}
	if len(rep.Recoveries) != 1 || stageText(rep.Recoveries[0].Stages) != "detect 80.0 ms, remap 0.5 ms, resume 0.0 ms" {
		t.Errorf("recoveries: %+v", rep.Recoveries)
	}
}

// A drill with a wrong expectation fails, says what happened instead, and heals.
func TestWrongExpectationShowsWhatHappened(t *testing.T) {
	f := newFake(t)
	rep := runOn(t, f, `
def drill():
    q = vm("q", span = ["b"])
    kill("b")
    expect(running(q), within = "200ms", name = "q survives")
`)
	if rep.Verdict != Failed {
		t.Fatalf("%s: %s", rep.Verdict, rep.Why)
	}
	for _, want := range []string{"test.star:5", "q survives", "instead: VM q is lost (cell b lost in epoch 2)"} {
		if !strings.Contains(rep.Why, want) {
			t.Errorf("%q lacks %q", rep.Why, want)
		}
	}
	if e := rep.Expectations[0]; e.OK || !strings.Contains(e.Instead, "cell b lost") || e.Where != "test.star:5" {
		t.Errorf("%+v", e)
	}
	if !slices.Equal(rep.Healing.Actions, []string{"started server b-1 again", "removed VM q"}) || !rep.Healing.OK {
		t.Errorf("%+v", rep.Healing)
	}
}

func TestInvariantBreaks(t *testing.T) {
	f := newFake(t)
	f.skip = 20
	rep := runOn(t, f, `
def drill():
    p = vm("p")
    steady(counting(p))
    sleep("20s")
`)
	if rep.Verdict != Failed || !strings.Contains(rep.Why, "record 20 of its output is 21") || rep.Invariants[0].OK {
		t.Fatalf("%s: %s", rep.Verdict, rep.Why)
	}
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name, body, why string
		verdict         Verdict
	}{
		{"abort_if", `
def drill():
    kill("b")
    abort_if(dead("b"), name = "b is gone")
`, "abort_if b is gone: server b-1 is dead", Aborted},
		{"blast radius", `
def drill():
    kill("b")
    kill("c")
`, "blast radius: b, c would be broken at a time, max_cells allows 1", Broken},
		{"unknown name", `
def drill():
    kill("z")
`, `"z" is neither a cell (a, b, c) nor a server (a-1, b-1, c-1)`, Broken},
		{"a condition that waits", `
def drill():
    expect(lambda: sleep(1), within = "1s")
`, "a condition must not wait or act", Broken},
		{"a value for a condition", `
def drill():
    expect(1 == 1)
`, "lambda", Broken},
		{"restart of what runs", `
def drill():
    restart("b")
`, "server b-1 runs", Broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			rep := runOn(t, f, c.body)
			if rep.Verdict != c.verdict || !strings.Contains(rep.Why, c.why) {
				t.Errorf("%s: %s", rep.Verdict, rep.Why)
			}
			if !rep.Healing.OK || f.servers[1].pid == 0 {
				t.Errorf("not healed: %+v", rep.Healing)
			}
		})
	}
}

func TestInterruptHeals(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	p := load(t, `
def drill():
    stop_process("b")
    log("now")
    sleep("60s")
`)
	rep, err := Run(ctx, p, fakeCluster{f}, f, Options{Step: func(s Step) {
		if s.Text == "now" {
			cancel()
		}
	}})
	if err != nil || rep.Verdict != Aborted || !rep.Healing.OK || f.servers[1].stopped {
		t.Fatalf("%v, %+v, stopped %t", err, rep, f.servers[1].stopped)
	}
}

// A runner that dies leaves its journal: nobody else begins, and heal undoes what it lists.
func TestHealAfterCrash(t *testing.T) {
	f := newFake(t)
	j, err := openJournal(f, "gone", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	j.Runner = Process{PID: 999, StartTicks: 1}
	v, _ := f.Run(t.Context(), &api.VMSpec{Name: "mine"})
	_, _ = f.Run(t.Context(), &api.VMSpec{Name: "theirs"})
	b := Process{PID: f.servers[1].pid, StartTicks: 7, Server: "b-1"}
	c := Process{PID: f.servers[2].pid, StartTicks: 7, Server: "c-1"}
	if err := errors.Join(j.addVM("mine"), j.setID("mine", v.GetId()), j.addVM("never"),
		j.addFault(fault{Kind: faultKill, Server: "b-1", Cell: "b", Processes: []Process{b}}), f.Signal(9, b),
		j.addFault(fault{Kind: faultStop, Server: "c-1", Cell: "c", Processes: []Process{c}}), f.Signal(19, c)); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), load(t, loseB), fakeCluster{f}, f, Options{}); err == nil || !strings.Contains(err.Error(), "drill heal") {
		t.Fatalf("a drill began on an unhealed cluster: %v", err)
	}
	f.others[999] = true
	dial := func(context.Context) (Cluster, func(), error) { return fakeCluster{f}, func() {}, nil }
	if _, err := HealAt(t.Context(), f, dial); err == nil || !strings.Contains(err.Error(), "still running") {
		t.Fatalf("healed under a running drill: %v", err)
	}
	delete(f.others, 999)
	h, err := HealAt(t.Context(), f, dial)
	if err != nil || !h.OK || f.servers[1].pid == 0 || f.servers[2].stopped || len(f.vms) != 1 || f.vms[0].GetName() != "theirs" {
		t.Fatalf("%v %+v %v", err, h, f.vms)
	}
	if _, err := HealAt(t.Context(), f, dial); !errors.Is(err, ErrNoJournal) {
		t.Fatalf("healed twice: %v", err)
	}
}

func TestHealingThatFailsIsTold(t *testing.T) {
	f := newFake(t)
	f.refuse = errors.New("no memory")
	rep := runOn(t, f, `
def drill():
    kill("b")
`)
	if rep.Verdict != Failed || rep.Healing.OK || !strings.Contains(rep.Why, "no memory") || !strings.Contains(rep.Why, "drill heal") {
		t.Fatalf("%s: %s", rep.Verdict, rep.Why)
	}
}

func TestReports(t *testing.T) {
	rep := runOn(t, newFake(t), loseB)
	var text, junit, page, js bytes.Buffer
	if err := errors.Join(rep.Text(&text, func(s string) string { return s }), rep.JUnit(&junit), rep.HTML(&page), json.NewEncoder(&js).Encode(rep)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"drill test: passed", "seed 7", "VM p went on from its replica", "detect 80.0 ms", "cell b lost", "healing: ok"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &text)
		}
	}
	var suite junitSuite
	if err := xml.Unmarshal(junit.Bytes(), &suite); err != nil || suite.Failures != 0 || suite.Tests != len(suite.Cases) || suite.Tests < 5 {
		t.Errorf("%v %+v", err, suite)
	}
	for _, want := range []string{"<svg", "server b-1: dead", "kill -9 of b", "</html>"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
}

func TestLint(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"x = 1", "there is no function drill()"},
		{"def drill(:", "got"},
		{"def drill():\n    nonsense()", "undefined: nonsense"},
		{"cells = 99\ndef drill():\n    pass", "cells = 99 must be a number from 1 to 26"},
		{"kill('b')\ndef drill():\n    pass", "works within drill() only"},
		{"def drill():\n    kill('b')", "it states nothing"},
		{"def drill():\n    expect(quorum(), witin = '1s')", "test.star:2: expect() has no argument witin"},
		{"def drill():\n    expect(quorum(), within = 'soon')", "no length of time"},
		{"def drill():\n    vm('x', payload = 'nonesuch')", "no built-in payload"},
		{"cells = 2\nmax_cells = 2\ndef drill():\n    expect(quorum())", "leaves nothing that could survive"},
	} {
		if got := strings.Join(Lint("test.star", []byte(c.body)), "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%q: %q lacks %q", c.body, got, c.want)
		}
	}
}

func TestReadyDrillsAreClean(t *testing.T) {
	names := drills.Names()
	if len(names) < 10 || !slices.Contains(names, "lose-a-cell") {
		t.Fatalf("ready drills: %v", names)
	}
	for _, name := range names {
		src, err := drills.Read(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range Lint(name+".star", src) {
			t.Error(p)
		}
	}
}

func TestReferenceIsComplete(t *testing.T) {
	text, err := os.ReadFile("../docs/drills.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, w := range vocabulary {
		if !strings.Contains(string(text), "`"+name+"(") {
			t.Errorf("docs/drills.md has no `%s(…)`", name)
		}
		for _, p := range w.params {
			if !strings.Contains(string(text), p) {
				t.Errorf("docs/drills.md says nothing of %s() argument %s", name, p)
			}
		}
	}
	for _, name := range append(slices.Clone(vmAttrs), clusterAttrs...) {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/drills.md has no attribute `%s`", name)
		}
	}
	for _, name := range drills.Names() {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/drills.md does not list `%s`", name)
		}
	}
}

func TestForecast(t *testing.T) {
	f := newFake(t)
	for _, spec := range []*api.VMSpec{{Name: "plain", Span: []string{"b"}, Protect: "none"}, {Name: "guarded", Span: []string{"b"}, Protect: "replica"}, {Name: "far", Span: []string{"a"}, Protect: "none"}} {
		if _, err := f.Run(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		kill   []string
		quorum bool
		fates  string
	}{
		{[]string{"b"}, true, "plain lost, guarded recovered, far untouched"},
		{[]string{"c"}, true, "plain unprotected, guarded unprotected, far unprotected"},
		{[]string{"b", "c-1"}, false, "plain paused, guarded paused, far paused"},
	} {
		got, err := WhatIf(t.Context(), fakeCluster{f}, c.kill)
		if err != nil {
			t.Fatal(err)
		}
		var fates []string
		for _, v := range got.VMs {
			fates = append(fates, v.VM+" "+v.Fate)
		}
		if got.Quorum != c.quorum || strings.Join(fates, ", ") != c.fates {
			t.Errorf("%v: %+v", c.kill, got)
		}
	}
	if _, err := WhatIf(t.Context(), fakeCluster{f}, []string{"nix"}); err == nil {
		t.Error("an unknown cell was accepted")
	}
}

// What servers do to themselves, and what was drained, is undone by the drill or at its end, and that is checked.
func TestInjections(t *testing.T) {
	f := newFake(t)
	rep := runOn(t, f, `
max_cells = 1
def drill():
    p = vm("p", span = ["b"], protect = "replica")
    cut("b", "a")
    delay("b", "c", "20ms", jitter = "5ms")
    mend("b", "a")
    loss("b", "c", permille = 10)
    wedge_rpc("b", "100ms")
    drain("c")
    expect(safe_to_stop("a"))
    expect(negate(safe_to_stop("b")))
    restore("c", back = "original")
    disk_full("b")
    expect(dead("b"), within = "5s")
    mend("b")
    expect(live("b"))
    drain("b")
    cut("b")
    panic_guest(p)
    expect(state(p, "failed"), within = "5s")
`)
	if rep.Verdict != Passed || !rep.Healing.OK {
		t.Fatalf("%s: %s; %+v", rep.Verdict, rep.Why, rep.Healing)
	}
	for server, left := range f.faults {
		if len(left) > 0 {
			t.Errorf("server %s is left with %v", server, left)
		}
	}
	if got := fmt.Sprint(rep.Healing.Actions); !strings.Contains(got, "mended b-1") || !strings.Contains(got, "opened b again") || strings.Contains(got, "opened c") {
		t.Error(got)
	}
	if last := f.ops[len(f.ops)-1]; last.GetKind() != api.OperationKind_OPERATION_KIND_RESTORE {
		t.Errorf("the last operation is a %s", last.GetKind().Word())
	}
}

func TestRefusedWithoutConsent(t *testing.T) {
	f := newFake(t)
	f.refused = true
	if _, err := Run(t.Context(), load(t, loseB), fakeCluster{f}, f, Options{}); err == nil || !strings.Contains(err.Error(), `drills = "allow"`) {
		t.Fatal(err)
	}
	if len(f.vms) > 0 || len(f.signals) > 0 {
		t.Error("something was done all the same")
	}
}
