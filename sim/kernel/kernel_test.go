package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// recorder notes what happens to it.
type recorder struct {
	w   *World
	id  NodeID
	log []string
	on  func(msg any)
}

func (r *recorder) Receive(now ident.Micros, from NodeID, msg any) {
	r.log = append(r.log, fmt.Sprintf("%d: %v from %d", now, msg, from))
	if r.on != nil {
		r.on(msg)
	}
}

func (r *recorder) Wake(now ident.Micros) { r.log = append(r.log, fmt.Sprintf("%d: wake", now)) }

func (r *recorder) String() string { return strings.Join(r.log, "; ") }

func newWorld(seed uint64, net Network, nodes int) (*World, []*recorder) {
	w := New(seed, net)
	var all []*recorder
	for range nodes {
		r := &recorder{w: w}
		r.id = w.Add(r)
		all = append(all, r)
	}
	return w, all
}

func TestSameSeedSameRun(t *testing.T) {
	run := func(seed uint64) string {
		w, nodes := newWorld(seed, Network{DelayMin: 10, DelayMax: 100, TailShare: 200, TailMax: 1000, LossShare: 100, RepeatShare: 100}, 3)
		for _, n := range nodes {
			n.on = func(msg any) {
				if hops := msg.(int); hops > 0 {
					w.Send(n.id, NodeID(w.Rand().IntN(3)), hops-1)
					w.Send(n.id, NodeID(w.Rand().IntN(3)), hops-2)
				}
			}
		}
		for i := range 20 {
			w.Send(0, NodeID(i%3), 6)
		}
		if err := w.Run(ident.Second); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(nodes[0], nodes[1], nodes[2], w.Stats())
	}
	if first, again := run(7), run(7); first != again {
		t.Error("seed 7 ran in two ways")
	}
	if run(7) == run(8) {
		t.Error("seeds 7 and 8 ran in the same way")
	}
}

func TestInOrder(t *testing.T) {
	w, nodes := newWorld(1, Network{DelayMin: 0, DelayMax: 1000, InOrder: true}, 2)
	for i := range 50 {
		w.Send(0, 1, i)
	}
	w.Run(ident.Second)
	for i, line := range nodes[1].log {
		if !strings.Contains(line, fmt.Sprintf(": %d from", i)) {
			t.Fatalf("message %d: %s", i, line)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	w, nodes := newWorld(1, Network{DelayMin: 10, DelayMax: 10}, 2)
	w.WakeAt(1, 20)
	w.At(5, func() { w.Pause(1) })
	w.Send(0, 1, "a")
	w.At(100, func() { w.Resume(1) })
	w.Run(200)
	if got, want := nodes[1].String(), "100: a from 0; 100: wake"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestCrashAndRestart(t *testing.T) {
	w, nodes := newWorld(1, Network{DelayMin: 10, DelayMax: 10}, 3)
	w.Send(1, 2, "sent before") // arrives though its sender is dead then
	w.Send(0, 1, "to the former")
	w.WakeAt(1, 50)
	next := &recorder{}
	w.At(5, func() { w.Crash(1) })
	w.At(6, func() { w.Restart(1, next); w.Send(0, 1, "to the next") })
	w.Run(100)
	if nodes[1].String() != "" || nodes[2].String() != "10: sent before from 1" || next.String() != "16: to the next from 0" {
		t.Errorf("%v | %v | %v", nodes[1], nodes[2], next)
	}
}

func TestCutAndHeal(t *testing.T) {
	w, nodes := newWorld(1, Network{}, 2)
	w.Cut(0, 1)
	w.Send(0, 1, "cut")
	w.Heal(0, 1)
	w.CutOneWay(1, 0)
	w.Send(0, 1, "there")
	w.Send(1, 0, "not back")
	w.Run(10)
	if nodes[1].String() != "0: there from 0" || nodes[0].String() != "" {
		t.Errorf("%v | %v", nodes[0], nodes[1])
	}
}

func TestWakeAtReplaces(t *testing.T) {
	w, nodes := newWorld(1, Network{}, 1)
	w.WakeAt(0, 10)
	w.WakeAt(0, 30)
	w.WakeAt(0, 20)
	w.Run(100)
	w.WakeAt(0, 150)
	w.NoWake(0)
	w.Run(200)
	if nodes[0].String() != "20: wake" {
		t.Error(nodes[0])
	}
}

// TestClocks: a node's wake comes at its own time, never early, however its clock runs.
func TestClocks(t *testing.T) {
	for _, drift := range []int64{0, 1, 100, -100, 50_000, -50_000} {
		w, nodes := newWorld(1, Network{}, 1)
		w.SetClock(0, 12345, drift)
		for at := ident.Micros(13000); at < 2_000_000; at += 77777 {
			nodes[0].log = nil
			w.WakeAt(0, at)
			w.RunUntil(10_000_000, func() bool { return len(nodes[0].log) > 0 })
			if now := w.Clock(0); now < at || now > at+2 {
				t.Fatalf("drift %d: woken at %d instead of %d", drift, now, at)
			}
		}
	}
}

func TestTraceKeepsTheEnd(t *testing.T) {
	w := New(1, Network{})
	w.Tracef("not traced")
	w.Tracing = true
	for i := range traceLines + 10 {
		w.Tracef("line %d", i)
	}
	lines := strings.Split(w.Trace(), "\n")
	if len(lines) != traceLines+1 || !strings.HasSuffix(lines[1], "line 10") || !strings.HasSuffix(lines[traceLines], fmt.Sprint("line ", traceLines+9)) {
		t.Errorf("%d lines, %q ... %q", len(lines), lines[1], lines[len(lines)-1])
	}
}
