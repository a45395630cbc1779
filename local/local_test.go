package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/tests/setting"
)

// TestMain lets this test binary stand in for the program: started as `… worker --dir DIR` it waits for its end, obstinately if told to.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "worker" {
		if os.Getenv("OBSTINATE") != "" {
			_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
			signal.Ignore(unix.SIGTERM)
		}
		fmt.Println("ready")
		<-time.After(time.Minute)
		os.Exit(0)
	}
	setting.Plain()
	os.Exit(m.Run())
}

// standIn starts a process that looks like a worker of a cluster in dir.
func standIn(t *testing.T, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "worker", "--dir", filepath.Join(dir, "a-1", "workers", "7-3"))
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, err := out.Read(make([]byte, 16))
	reaped := make(chan struct{})
	go func() { defer close(reaped); _ = cmd.Wait() }() // as init does for a worker whose serve is gone: at once
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-reaped })
	if err != nil || n == 0 {
		t.Fatalf("the stand-in did not start: %v", err)
	}
	return cmd
}

func clusterDir(t *testing.T) string {
	t.Helper()
	dir, err := Abs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestIdentity(t *testing.T) {
	p, err := Identify(os.Getpid())
	if err != nil || !p.Alive() {
		t.Fatalf("this process: %+v, %v", p, err)
	}
	other := Process{PID: p.PID, StartTicks: p.StartTicks + 1}
	if other.Alive() {
		t.Error("a process with another start time counts as alive: its PID was used again")
	}
	if _, err := other.open(); !errors.Is(err, errGone) {
		t.Errorf("opening it: %v", err)
	}
	if _, err := Identify(0); err == nil {
		t.Error("PID 0 was identified")
	}
}

func TestFindAndDown(t *testing.T) {
	dir, elsewhere := clusterDir(t), clusterDir(t)
	mine, other := standIn(t, dir), standIn(t, elsewhere)
	found, err := Find(dir)
	if err != nil || len(found) != 1 || found[0].PID != mine.Process.Pid || found[0].Kind != KindWorker || found[0].Server != "a-1" {
		t.Fatalf("found %+v, %v", found, err)
	}
	ended, err := Down(dir)
	if err != nil || len(ended) != 1 || ended[0].PID != mine.Process.Pid || ended[0].Killed {
		t.Errorf("ended %+v, %v", ended, err)
	}
	if ended, err = Down(dir); err != nil || len(ended) != 0 {
		t.Errorf("a second time: %+v, %v", ended, err)
	}
	if left, err := Find(elsewhere); err != nil || len(left) != 1 || left[0].PID != other.Process.Pid {
		t.Errorf("the other cluster has %+v, %v", left, err)
	}
	if ended, err = Down(filepath.Join(dir, "nonexistent")); err != nil || len(ended) != 0 {
		t.Errorf("a directory that is not there: %+v, %v", ended, err)
	}
}

// A process that ignores SIGTERM, and one that is stopped, are ended too.
func TestDownEndsTheObstinate(t *testing.T) {
	dir := clusterDir(t)
	deaf, frozen := standIn(t, dir, "OBSTINATE=1"), standIn(t, dir)
	if err := unix.Kill(frozen.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended, err := Down(dir)
	if err != nil || len(ended) != 2 {
		t.Fatalf("ended %+v, %v", ended, err)
	}
	for _, e := range ended {
		if e.Killed != (e.PID == deaf.Process.Pid) {
			t.Errorf("process %d (deaf: %v): killed %v", e.PID, e.PID == deaf.Process.Pid, e.Killed)
		}
	}
}

func TestMemberOf(t *testing.T) {
	for line, want := range map[string]string{
		"cv serve --config /d/a-1.hcl":                    "serve a-1",
		"/x/cv serve --config=/d/b-2.hcl":                 "serve b-2",
		"cv worker --dir /d/a-1/workers/7-3":              "worker a-1",
		"cv worker --dir /d2/a-1/workers/7-3":             "",
		"cv serve --config /d/../e/a-1.hcl":               "",
		"cv serve --config a-1.hcl":                       "",
		"cv vm run --config /d/a-1.hcl":                   "",
		"vi serve":                                        "",
		"cv worker --dir /d":                              "",
		"cv serve --config":                               "",
		"cv worker --verbose --dir /d/witness-1/w --more": "worker witness-1",
	} {
		m, ok := memberOf("/d", strings.Fields(line))
		got := ""
		if ok {
			got = string(m.Kind) + " " + m.Server
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

// Votes are odd in number, spread over cells, and no single cell holds a majority that the others could not do without.
func TestVotes(t *testing.T) {
	for cells := 1; cells <= 8; cells++ {
		for per := 1; per <= 4; per++ {
			peers, err := layout(Shape{Cells: cells, PerCell: per})
			if err != nil {
				t.Fatal(err)
			}
			votes, byCell := 0, make(map[ident.CellName]int)
			for i, p := range peers {
				if p.ID != ident.ServerID(i+1) || p.Peer == p.Gossip {
					t.Errorf("peer %+v", p)
				}
				if p.Voter {
					votes++
					byCell[p.Cell]++
				}
			}
			if votes%2 == 0 || votes > maxVoters {
				t.Errorf("%d cells of %d: %d votes", cells, per, votes)
			}
			for cell, n := range byCell {
				if cells > 1 && 2*n > votes {
					t.Errorf("%d cells of %d: cell %s has %d of %d votes", cells, per, cell, n, votes)
				}
			}
			if has := peers[len(peers)-1].Role == config.RoleWitness; has != (cells == 2) {
				t.Errorf("%d cells: witness %v", cells, has)
			}
		}
	}
}

// What create writes is what a server reads.
func TestCreate(t *testing.T) {
	dir := clusterDir(t)
	c, err := open(dir, Shape{Cells: 2, PerCell: 2, Slots: 3, Memory: 64 * ident.MiB})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Servers) != 5 || c.Server("b-2") == nil || c.Server("c-1") != nil {
		t.Fatalf("servers %+v", c.Servers)
	}
	for _, s := range c.Servers {
		cfg, err := config.Load(s.Config)
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		if string(cfg.Name) != s.Name || cfg.ClusterID != c.ID || len(cfg.Initial) != 5 || cfg.DataDir != s.DataDir || "unix://"+cfg.Listen.APIUnix != s.API {
			t.Errorf("%s: %+v", s.Name, cfg)
		}
	}
	again, err := open(dir, Shape{Cells: 2})
	if err != nil || again.ID != c.ID {
		t.Errorf("opened again: %+v, %v", again, err)
	}
	if _, err := open(dir, Shape{Cells: 3}); err == nil || !strings.Contains(err.Error(), "has 2 cells, not 3") {
		t.Errorf("another shape: %v", err)
	}
	if err := Purge(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the purge: %v", err)
	}
}

func TestDirectoriesThatAreRefused(t *testing.T) {
	if err := claim("/tmp/" + strings.Repeat("x", maxDirLen)); err == nil || !strings.Contains(err.Error(), "shorter --dir") {
		t.Errorf("a long path: %v", err)
	}
	dir := clusterDir(t)
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(dir, Shape{}); err == nil || !strings.Contains(err.Error(), "it holds thesis.txt") {
		t.Errorf("somebody's files: %v", err)
	}
	if err := Purge(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Errorf("purging what is no cluster: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, clusterFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged cluster.json: %v", err)
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := freePorts(20, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, p := range ports {
		if seen[p] || !portFree(p) {
			t.Errorf("port %d", p)
		}
		seen[p] = true
	}
}

// A server that ends as soon as it is started is told of by what it said last; one that stays is left to itself when patience ends.
func TestAnswers(t *testing.T) {
	dir := clusterDir(t)
	c, err := open(dir, Shape{})
	if err == nil {
		err = c.save()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []struct {
		script, words string
		patience      time.Duration
	}{{"echo its disk is full; exit 1", "its disk is full", time.Minute}, {"exec sleep 60", "", 50 * time.Millisecond}} {
		exe := filepath.Join(t.TempDir(), "exe")
		if err := os.WriteFile(exe, []byte("#!/bin/sh\n"+server.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		p, err := StartServer(dir, "a-1", exe)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), server.patience)
		err = Answers(ctx, dir, "a-1", p)
		cancel()
		if server.words == "" {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
		_, _ = unix.Wait4(p.PID, nil, 0, nil)
		if server.words == "" && err != nil || server.words != "" && (err == nil || !strings.Contains(err.Error(), server.words)) {
			t.Errorf("%q: %v", server.script, err)
		}
	}
}
