package tests

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// A timeline tells what a recovery waited for: what the cluster's events, all servers' and workers' logs, and the reader of the output say of one round,
// in the order of time. It is printed for each round whose gap is longer than TIMELINE_MS (400 unless said). TIMELINE_DIR keeps them as files; with it servers
// log each hint that another one may be gone.

// moment is one line of a timeline.
type moment struct {
	at   time.Time
	who  string
	what string
}

// timelineBound is the longest gap of which nothing is told.
func (c *chaos) timelineBound() time.Duration {
	return time.Duration(envNumber(c.t, "TIMELINE_MS", 400)) * time.Millisecond
}

// serverLogLevel is what the servers of a test log.
func serverLogLevel() string {
	if os.Getenv("TIMELINE_DIR") != "" {
		return "debug"
	}
	return ""
}

// timeline reports a round that took long.
func (f *failover) timeline(what string, began time.Time, gap time.Duration) {
	if gap <= f.timelineBound() {
		return
	}
	all := slices.Concat(f.eventsSince(began), f.logsSince(began), f.reader.story(), f.pulse.late())
	all = append(all, moment{began, "test", "the fault strikes"})
	at, took := f.reader.gapSince(began)
	all = append(all, moment{at, "reader", "the last record before the gap"}, moment{at.Add(took), "reader", "the first record after the gap"})
	all = slices.DeleteFunc(all, func(m moment) bool {
		return m.at.Before(began.Add(-50*time.Millisecond)) || m.at.After(at.Add(took+300*time.Millisecond))
	})
	slices.SortStableFunc(all, func(a, b moment) int { return a.at.Compare(b.at) })
	var b strings.Builder
	fmt.Fprintf(&b, "%s: a gap of %v, from %v after the fault on\n", what, gap.Round(time.Millisecond), at.Sub(began).Round(time.Millisecond))
	for _, m := range all {
		fmt.Fprintf(&b, "%9.1f ms  %-14s %s\n", float64(m.at.Sub(began).Microseconds())/1000, m.who, m.what)
	}
	dir := os.Getenv("TIMELINE_DIR")
	if dir == "" {
		f.t.Log(b.String())
		return
	}
	name := filepath.Join(dir, fmt.Sprintf("%s-%d.txt", f.t.Name(), began.UnixNano()))
	f.must(os.MkdirAll(dir, 0o755), os.WriteFile(name, []byte(b.String()), 0o644))
	f.t.Logf("%s: a gap of %v: see %s", what, gap.Round(time.Millisecond), name)
}

func (f *failover) eventsSince(began time.Time) (out []moment) {
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	_ = f.client.FollowEvents(ctx, 0, false, func(e *api.Event) error {
		if at := e.GetTime().AsTime(); !at.Before(began) {
			fields := ""
			for _, k := range slices.Sorted(maps.Keys(e.GetFields())) {
				fields += " " + k + "=" + e.GetFields()[k]
			}
			out = append(out, moment{at, "event", e.GetType() + ": " + e.GetMessage() + fields})
		}
		return nil
	})
	return out
}

// logsSince reads what all servers and workers have logged. A server's log has times of day, a worker's is JSON.
func (f *failover) logsSince(began time.Time) (out []moment) {
	for _, s := range f.session.Cluster.Servers {
		raw, _ := os.ReadFile(s.Log)
		for line := range bytes.Lines(raw) {
			clock, text, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
			at, err := time.ParseInLocation("2006-01-02 15:04:05.000000", began.Format("2006-01-02 ")+clock, began.Location())
			if err == nil && !at.Before(began) {
				out = append(out, moment{at, s.Name, text})
			}
		}
	}
	names, _ := filepath.Glob(filepath.Join(f.dir, "*", "workers", "*", "worker.log"))
	for _, name := range names {
		raw, _ := os.ReadFile(name)
		rel, _ := filepath.Rel(f.dir, name)
		server, _, _ := strings.Cut(rel, string(filepath.Separator))
		for line := range bytes.Lines(raw) {
			var e map[string]any
			if json.Unmarshal(line, &e) != nil {
				continue
			}
			text, _ := e["time"].(string)
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil || at.Before(began) {
				continue
			}
			said := fmt.Sprint(e["message"])
			delete(e, "time")
			delete(e, "message")
			rest, _ := json.Marshal(e)
			out = append(out, moment{at, server + " worker", said + " " + string(rest)})
		}
	}
	return out
}

// pulse notes when this process, and so the host, ran late: what nobody but the host is to blame for.
type pulse struct {
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	beats []moment // protected by mu
}

const (
	pulseEvery = 5 * time.Millisecond
	pulseLate  = 40 * time.Millisecond
)

func newPulse() *pulse {
	p := &pulse{stop: make(chan struct{})}
	p.done.Go(func() {
		tick := time.NewTicker(pulseEvery)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
			now := time.Now()
			if late := now.Sub(last); late > pulseLate {
				p.mu.Lock()
				p.beats = append(p.beats, moment{now, "host", fmt.Sprintf("did not run the test for %v", late.Round(time.Millisecond))})
				p.mu.Unlock()
			}
			last = now
		}
	})
	return p
}

func (p *pulse) late() []moment {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.beats)
}

func (p *pulse) end() {
	close(p.stop)
	p.done.Wait()
}

// story is what the reader went through: each stream that it opened, and how it ended.
func (r *reader) story() []moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.streams)
}

// tell adds to the story.
func (r *reader) tell(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const most = 4000
	if len(r.streams) == most {
		r.streams = r.streams[most/2:]
	}
	r.streams = append(r.streams, moment{time.Now(), "reader", what})
}

// gapSince returns when the longest time without a record since a moment began, and how long it was.
func (r *reader) gapSince(since time.Time) (at time.Time, gap time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, _ := slices.BinarySearchFunc(r.times, since, time.Time.Compare)
	at = since
	for last := since; i < len(r.times); i++ {
		if d := r.times[i].Sub(last); d > gap {
			at, gap = last, d
		}
		last = r.times[i]
	}
	return at, cmp.Or(gap, time.Since(since))
}
