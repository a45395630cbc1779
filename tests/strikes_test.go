package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/local"
)

// Faults that strike twice: two at once, or the second one in a chosen stage of the recovery from the first. A recovery takes some ten milliseconds, so
// its stages are found by what the workers log, and afterwards it is told which stage the second fault hit.

// stages of a recovery in which a second fault can be made to strike, in their order.
var strikeStages = []string{"detect", "agree", "unwedge", "remap", "resume", "resumed"}

// What workers log when a stage begins.
const (
	logUnwedge = "a peer does not answer"
	logRemap   = "goes back to the last checkpoint"
	logResumed = "taken over"
)

// stageWithin bounds the wait for a stage. A server that stands still is excluded when its lease has lapsed, 1.5 s by default.
const stageWithin = 4 * time.Second

// logs reads what the workers of a cluster log from a moment on.
type logs struct {
	dir  string
	read map[string]int64
	text map[string][]byte // by file
}

func (f *failover) followLogs() *logs {
	l := &logs{dir: f.dir, read: map[string]int64{}, text: map[string][]byte{}}
	for _, name := range l.files() {
		if st, err := os.Stat(name); err == nil {
			l.read[name] = st.Size()
		}
	}
	return l
}

func (l *logs) files() []string {
	names, _ := filepath.Glob(filepath.Join(l.dir, "*", "workers", "*", "worker.log"))
	return names
}

// poll reads what is new.
func (l *logs) poll() {
	for _, name := range l.files() {
		st, err := os.Stat(name)
		if err != nil || st.Size() <= l.read[name] {
			continue
		}
		file, err := os.Open(name)
		if err != nil {
			continue
		}
		b := make([]byte, st.Size()-l.read[name])
		n, _ := file.ReadAt(b, l.read[name])
		file.Close()
		l.read[name] += int64(n)
		l.text[name] = append(l.text[name], b[:n]...)
	}
}

// first returns the server and the time of the first line with a text, "" if there is none.
func (l *logs) first(text string) (server string, at time.Time) {
	for name, all := range l.text {
		for line := range bytes.Lines(all) {
			var e struct{ Time time.Time }
			if !bytes.Contains(line, []byte(text)) || json.Unmarshal(line, &e) != nil || server != "" && !e.Time.Before(at) {
				continue
			}
			rel, _ := filepath.Rel(l.dir, name)
			server, at = strings.Split(rel, string(filepath.Separator))[0], e.Time
		}
	}
	return server, at
}

// number returns a number from the first line of a server's workers that has all the words; ok is false if there is none.
func (l *logs) number(server, field string, words ...string) (found int64, ok bool) {
	for name, all := range l.text {
		if !strings.HasPrefix(name, filepath.Join(l.dir, server)+string(filepath.Separator)) {
			continue
		}
		for line := range bytes.Lines(all) {
			has := true
			for _, w := range words {
				has = has && bytes.Contains(line, []byte(w))
			}
			var e map[string]any
			if !has || json.Unmarshal(line, &e) != nil {
				continue
			}
			if v, is := e[field].(float64); is {
				return int64(v), true
			}
		}
	}
	return 0, false
}

// await waits until a text is logged, and returns where; "" if it is not within stageWithin.
func (l *logs) await(text string) string {
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for late := time.Now().Add(stageWithin); time.Now().Before(late); <-tick.C {
		l.poll()
		if server, _ := l.first(text); server != "" {
			return server
		}
	}
	return ""
}

// stageAt tells which stage was under way at a moment.
func (l *logs) stageAt(at time.Time) string {
	l.poll()
	now := "detect, agree"
	for _, s := range []struct{ stage, text string }{{"unwedge", logUnwedge}, {"remap, resume", logRemap}, {"resumed", logResumed}} {
		if server, began := l.first(s.text); server != "" && !began.After(at) {
			now = s.stage
		}
	}
	return now
}

// upTo is a random time below a bound.
func (f *failover) upTo(d time.Duration) time.Duration { return time.Duration(f.rng.Int64N(int64(d))) }

// awaitStage waits until a recovery from the fault of just now is in a stage. stopped: the fault was a stop, which is noticed when the lease lapses.
func (f *failover) awaitStage(l *logs, stage string, stopped bool) {
	switch stage {
	case "detect", "agree":
		d := f.upTo(3 * time.Millisecond)
		if stage == "agree" {
			d += 2 * time.Millisecond
		}
		if stopped {
			d += 1300*time.Millisecond + f.upTo(500*time.Millisecond)
		}
		<-time.After(d)
	case "unwedge":
		if stopped { // nothing is reset then: what is silent is noticed a little before it is excluded, or not at all
			<-time.After(1500*time.Millisecond + f.upTo(300*time.Millisecond))
			return
		}
		l.await(logUnwedge)
	case "remap":
		l.await(logRemap)
	case "resume":
		l.await(logRemap)
		<-time.After(f.upTo(4 * time.Millisecond))
	default:
		l.await(logResumed)
		<-time.After(f.upTo(300 * time.Millisecond))
	}
}

// heir is the server that goes on with the VM, or, as long as none does, one that may.
func (f *failover) heir(l *logs, vm *api.VM) string {
	l.poll()
	if server, _ := l.first(logResumed); server != "" {
		return server
	}
	for range 20 {
		if s := f.workerOf(vm, "standby"); s != vm.GetHome() {
			return s
		}
	}
	return f.workerOf(vm, "standby")
}

// duringRecovery kills or stops the cell of the VM's home, or of another member, and strikes the server that goes on with it in a stage of the recovery.
func (f *failover) duringRecovery(second string, vm *api.VM) (string, func()) {
	l := f.followLogs()
	first := vm.GetHome()
	if f.rng.IntN(3) == 0 {
		first = f.workerOf(vm, "member")
	}
	stopped := f.rng.IntN(4) == 0
	stage := strikeStages[f.rng.IntN(len(strikeStages))]
	sig, name := syscall.SIGKILL, "kill -9"
	if stopped {
		sig, name = syscall.SIGSTOP, "SIGSTOP"
	}
	f.signalAll(sig, ofServer(first))
	f.awaitStage(l, stage, stopped)
	heir := f.heir(l, vm)
	at := time.Now()
	what, undone := f.secondStrike(second, heir)
	hit := l.stageAt(at)
	f.hits[hit]++
	what = fmt.Sprintf("%s of %s, and in stage %s (%s was asked for) %s", name, first, hit, stage, what)
	if !stopped {
		return what, undone
	}
	return what, func() { undone(); f.signalAll(syscall.SIGCONT, ofServer(first)) }
}

// secondStrike strikes a server that recovers a VM.
func (f *failover) secondStrike(kind, server string) (what string, undo func()) {
	serve := func(m local.Member) bool { return m.Server == server && m.Kind == local.KindServe }
	switch kind {
	case "kill":
		f.signalAll(syscall.SIGKILL, ofServer(server))
		return "kill -9 of " + server, func() {}
	case "serve":
		f.signalAll(syscall.SIGKILL, serve)
		f.startAgain(server)
		return "kill -9 of the serve process of " + server, func() {}
	case "stop":
		return f.blink(server, "", 3*time.Second)
	default: // stopserve: its workers go on until their lease lapses
		return f.blink(server, local.KindServe, 3*time.Second)
	}
}

// startAgain starts a killed serve process, with its workers left as they are.
func (f *failover) startAgain(server string) {
	f.until(faultPatience, "a killed serve process ends", func(context.Context) error {
		for _, m := range f.killed {
			if m.Server == server && m.Kind == local.KindServe && m.Process.Alive() {
				return fmt.Errorf("process %d is there", m.PID)
			}
		}
		return nil
	})
	if _, err := local.StartServer(f.dir, server, program); err != nil && !strings.Contains(err.Error(), "runs already") {
		f.t.Fatal(err)
	}
}

// blink stops a server's processes of a kind, or all, and continues them by itself before long.
func (f *failover) blink(server string, kind local.Kind, most time.Duration) (what string, undo func()) {
	of := func(m local.Member) bool { return m.Server == server && (kind == "" || m.Kind == kind) }
	d := f.upTo(most)
	f.signalAll(syscall.SIGSTOP, of)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-time.After(d)
		f.cont(of)
	}()
	whom := server
	if kind != "" {
		whom = string(kind) + " of " + server
	}
	return fmt.Sprintf("SIGSTOP of %s for %v, then SIGCONT", whom, d.Round(time.Millisecond)), func() { <-done }
}

// cont continues what matches. It may be called from any goroutine.
func (f *failover) cont(match func(local.Member) bool) {
	members, err := local.Find(f.dir)
	if err != nil {
		f.t.Error(err)
	}
	for _, m := range members {
		if match(m) {
			_ = syscall.Kill(m.PID, syscall.SIGCONT)
		}
	}
}

// both makes two faults at once that together leave the VM what it needs: it must go on.
func (f *failover) both(vm *api.VM) (string, func()) {
	one := f.anyServer()
	other := one
	for other == one {
		other = f.anyServer()
	}
	var a, b string
	undoA, undoB := func() {}, func() {}
	switch f.rng.IntN(4) {
	case 0: // a cell, and the serve process of another one: no quorum until that is back
		f.signalAll(syscall.SIGKILL, ofServer(one))
		a = "kill -9 of " + one
		b, undoB = f.secondStrike("serve", other)
	case 1: // a cell is killed, another one stands still: no quorum until it goes on
		f.signalAll(syscall.SIGKILL, ofServer(one))
		a = "kill -9 of " + one
		b, undoB = f.blink(other, "", 2*time.Second)
	case 2: // two stand still
		a, undoA = f.blink(one, "", 3*time.Second)
		b, undoB = f.blink(other, "", time.Second)
	default: // the home's worker is killed, a cell stands still for a moment
		home := vm.GetHome()
		f.signalAll(syscall.SIGKILL, func(m local.Member) bool { return m.Server == home && m.Kind == local.KindWorker })
		a = "kill -9 of the home worker on " + home
		b, undoB = f.blink(one, "", time.Second)
	}
	return a + " and " + b, func() { undoA(); undoB() }
}
