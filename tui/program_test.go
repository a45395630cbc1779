package tui

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/exp/teatest"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/feed"
)

// TestProgram runs the whole program, feed and service included, in Bubble Tea's test terminal.
func TestProgram(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	f := feed.New(feed.Config{Addrs: []string{"fake"}, Dial: server.Dial, Interval: feed.MinInterval})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	tm := teatest.NewTestModel(t, newApp(ctx, plainTheme(), feedSource{f}, false), teatest.WithInitialTermSize(100, 30))
	wants := func(texts ...string) {
		t.Helper()
		teatest.WaitFor(t, tm.Output(), func(out []byte) bool {
			return !slices.ContainsFunc(texts, func(text string) bool { return !bytes.Contains(out, []byte(text)) })
		}, teatest.WithDuration(20*time.Second),
			teatest.WithCheckInterval(5*time.Millisecond))
	}
	wants("VMs (6)")
	tm.Type("jj")
	tm.Send(keyMsg("enter"))
	wants("48101")
	tm.Type("c")
	wants("round 2000")
	server.Change(func(s *fake.State) { s.Consoles["lock"] = append(s.Consoles["lock"], "round 3000\n"...) })
	wants("round 3000")
	tm.Send(keyMsg("esc"))
	tm.Type("s")
	wants("Stop VM lock?")
	tm.Type("y")
	wants("vm stop lock: stopped", "■ stopped")
	tm.Send(keyMsg("ctrl+c"))
	tm.WaitFinished(t, teatest.WithFinalTimeout(20*time.Second))
	if calls := server.Calls(); len(calls) != 1 || calls[0] != "stop lock" {
		t.Errorf("calls %q", calls)
	}
}

// lineWriter gives what is written line by line.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		w <- strings.TrimSpace(line)
	}
	return len(p), nil
}

func TestPlainLines(t *testing.T) {
	server := fake.Start(fake.Small())
	t.Cleanup(server.Stop)
	client, conn, err := server.Dial("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	out := make(lineWriter, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Client: client, In: strings.NewReader(""), Out: out, Interval: feed.MinInterval})
	}()
	wants := func(text string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case line := <-out:
				if strings.HasSuffix(line, text) {
					return
				}
			case <-deadline:
				t.Fatalf("no line %q", text)
			}
		}
	}
	wants("  epoch 7  quorum yes  leader a-1  cells 3/3  servers 5/6  VMs 2 running, 6 listed")
	wants("  server c-2 dead")
	wants("  VM boom failed: triple fault of vCPU 0 at 0x400123")
	server.Change(func(s *fake.State) {
		s.Status.Epoch = 8
		s.VMs[2].State = api.VMState_VM_STATE_LOST
		s.VMs[2].Reason = "cell b lost\x1b[31m in epoch 8"
	})
	wants("  epoch 8  quorum yes  leader a-1  cells 3/3  servers 5/6  VMs 2 running, 6 listed")
	wants("  VM lock lost: cell b lost-[31m in epoch 8")
	server.Stop()
	deadline := time.After(time.Minute)
	for {
		select {
		case line := <-out:
			if strings.Contains(line, "no answer: ") {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
				return
			}
		case <-deadline:
			t.Fatal("the loss of the cluster is not told")
		}
	}
}

func TestBadAddress(t *testing.T) {
	for _, addr := range []string{"", "nonsense", ","} {
		if err := Run(t.Context(), Options{Addr: addr, Out: &bytes.Buffer{}, In: strings.NewReader("")}); err == nil {
			t.Errorf("%q is taken", addr)
		}
	}
}
