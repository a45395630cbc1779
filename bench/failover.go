package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// FailoverSettings say how the failover benchmark runs.
type FailoverSettings struct {
	Kills int    `json:"kills"`
	Seed  uint64 `json:"seed"`

	MemoryBytes ident.Bytes `json:"memory_bytes"` // of the VM
}

// Check tells what is wrong with the settings.
func (s FailoverSettings) Check() error {
	if s.Kills < 1 || s.Kills > 10000 {
		return fmt.Errorf("kills must be from 1 to 10000, not %d", s.Kills)
	}
	if s.MemoryBytes < 16*ident.MiB || s.MemoryBytes > 64*ident.GiB {
		return fmt.Errorf("memory must be from 16MiB to 64GiB, not %s", s.MemoryBytes)
	}
	return nil
}

// FailoverReport is the result of the failover benchmark. All times are of kills that made the VM go back to its replica.
type FailoverReport struct {
	Benchmark string           `json:"benchmark"`
	Host      Host             `json:"host"`
	Settings  FailoverSettings `json:"settings"`
	Records   int              `json:"records"` // in order, none missing, none twice
	Standbys  int              `json:"standby_kills"`

	Total  MillisFigure `json:"total_ms"`  // from the kill to the first record that had not left before
	Agree  MillisFigure `json:"agree_ms"`  // from the kill to the view without the cell: detect, fence, agree
	Remap  MillisFigure `json:"remap_ms"`  // at the new home: from being told to memory being in place
	Resume MillisFigure `json:"resume_ms"` // until the vCPUs may run
	Output MillisFigure `json:"output_ms"` // from the view to the first new record: all that follows agreement, as a client sees it

	Standby MillisFigure `json:"standby_ms"` // of kills that took only the standby: output waits until the view says so
	Resync  MillisFigure `json:"resync_ms"`  // from the restart of the cell to the VM being safe again
}

// MillisFigure sums up samples in milliseconds.
type MillisFigure struct {
	Samples int     `json:"samples"`
	Median  float64 `json:"median"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

func summarizeMillis(took []time.Duration) MillisFigure {
	if len(took) == 0 {
		return MillisFigure{}
	}
	sorted := slices.Clone(took)
	slices.Sort(sorted)
	at := func(percent int) float64 {
		return round3(float64(sorted[(percent*len(sorted)+99)/100-1].Microseconds()) / 1000)
	}
	return MillisFigure{Samples: len(sorted), Median: at(50), P99: at(99), Max: at(100)}
}

const (
	failoverVM   = "counter"
	onItsWay     = 30 * time.Millisecond // records may still arrive for that long which had left before a kill
	safePatience = time.Minute
)

// failover is the state of a run.
type failover struct {
	*cluster
	exe   string
	rng   *rand.Rand
	watch *recordTimes

	total, agree, remap, resume, output, standby, resync []time.Duration
}

// Failover kills cells of a protected VM at random moments and measures how long it is until the outside sees it go on.
func Failover(ctx context.Context, exe string, set FailoverSettings, say func(string)) (rep FailoverReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = FailoverReport{Benchmark: "failover", Host: ThisHost(), Settings: set}
	say("starting a cluster of three cells")
	c, err := startCluster(ctx, exe, 3, slots, max(512*ident.MiB, 2*set.MemoryBytes))
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	f := &failover{cluster: c, exe: exe, rng: rand.New(rand.NewPCG(set.Seed, 3))}
	spec := &api.VMSpec{Name: failoverVM, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: "0 1000", Vcpus: 2, MemoryBytes: uint64(set.MemoryBytes),
		Span: []string{"a", "b"}, OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "replica"}
	if _, err := c.client.Run(ctx, spec); err != nil {
		return rep, fmt.Errorf("starting VM %s: %s", failoverVM, api.Message(err))
	}
	f.watch = watchRecords(ctx, c.client, failoverVM)
	defer f.watch.close()
	for kill := range set.Kills {
		say(fmt.Sprintf("kill %d of %d", kill+1, set.Kills))
		if err := f.kill(ctx); err != nil {
			return rep, fmt.Errorf("kill %d: %w", kill+1, err)
		}
	}
	f.fill(&rep)
	return rep, nil
}

func (f *failover) fill(rep *FailoverReport) {
	rep.Records, rep.Standbys = f.watch.count(), len(f.standby)
	rep.Total, rep.Agree, rep.Remap, rep.Resume = summarizeMillis(f.total), summarizeMillis(f.agree), summarizeMillis(f.remap), summarizeMillis(f.resume)
	rep.Output, rep.Standby, rep.Resync = summarizeMillis(f.output), summarizeMillis(f.standby), summarizeMillis(f.resync)
}

// kill kills one cell, waits for the VM to go on, and starts the cell again.
func (f *failover) kill(ctx context.Context) error {
	vm, err := f.safe(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, time.Duration(f.rng.IntN(300))*time.Millisecond); err != nil {
		return err
	}
	cell := string(rune('a' + f.rng.IntN(3)))
	before := f.watch.count()
	dead, began, err := local.KillCell(f.dir, cell)
	if err != nil {
		return err
	}
	first, err := f.watch.firstAfter(ctx, began.Add(onItsWay), before+200)
	if err != nil {
		return err
	}
	took := first.Sub(began)
	for _, m := range dead { // it counts as running until the kernel has taken it apart
		for m.Process.Alive() {
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	}
	restarted := time.Now()
	if _, err := local.StartServer(f.dir, cell+"-1", f.exe); err != nil {
		return err
	}
	now, err := f.safe(ctx)
	if err != nil {
		return err
	}
	f.resync = append(f.resync, time.Since(restarted))
	if now.GetRecoveries() == vm.GetRecoveries() {
		f.standby = append(f.standby, took)
		return nil
	}
	f.total = append(f.total, took)
	return f.stages(ctx, began, took)
}

// stages reads from the events how long each stage of the recovery took that began with a kill.
func (f *failover) stages(ctx context.Context, began time.Time, took time.Duration) error {
	agreed := false
	micros := func(e *api.Event, field string) time.Duration {
		d, _ := time.ParseDuration(e.GetFields()[field] + "us")
		return d
	}
	return f.client.FollowEvents(ctx, 0, false, func(e *api.Event) error {
		at := e.GetTime().AsTime().Sub(began)
		switch {
		case at < -time.Millisecond || e.GetType() != "vm.recovering" && e.GetType() != "vm.recovered":
		case e.GetType() == "vm.recovering" && !agreed:
			agreed = true
			f.agree, f.output = append(f.agree, max(0, at)), append(f.output, max(0, took-at))
		case e.GetType() == "vm.recovered" && agreed && e.GetFields()["remap_us"] != "":
			f.remap, f.resume = append(f.remap, micros(e, "remap_us")), append(f.resume, micros(e, "resume_us"))
			agreed = false
		}
		return nil
	})
}

// safe waits until the VM survives the next kill.
func (f *failover) safe(ctx context.Context) (*api.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, safePatience)
	defer cancel()
	for {
		var vm *api.VM
		err := f.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			r, err := svc.GetVM(ctx, &api.GetVMRequest{Name: failoverVM})
			vm = r.GetVm()
			return err
		})
		switch {
		case err == nil && vm.GetState().Ended():
			return nil, fmt.Errorf("VM %s is %s: %s", failoverVM, vm.GetState().Word(), vm.GetReason())
		case err == nil && vm.GetProtection() == "safe":
			if st, err := f.client.API().Status(ctx, &api.StatusRequest{}); err == nil && st.GetServersLive() == st.GetServersTotal() {
				return vm, nil
			}
		}
		if serr := sleep(ctx, 10*time.Millisecond); serr != nil {
			return nil, fmt.Errorf("VM %s is %s, protection %s: %w", failoverVM, vm.GetState().Word(), vm.GetProtection(), errors.Join(err, serr))
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// recordTimes follows a counting VM's output through failovers, and notes when each record came.
type recordTimes struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	times []time.Time // protected by mu
	wrong error       // protected by mu
}

func watchRecords(ctx context.Context, c *api.Client, vm string) *recordTimes {
	ctx, cancel := context.WithCancel(ctx)
	w := &recordTimes{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil && w.err() == nil {
			if c.Output(ctx, vm, uint64(w.count()), true, w.note) == nil {
				return
			}
			_ = sleep(ctx, 5*time.Millisecond)
		}
	}()
	return w
}

func (w *recordTimes) note(at uint64, record uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := len(w.times); int(at) != want || int(record) != want {
		w.wrong = fmt.Errorf("record %d came as number %d where %d was due: the output is broken", record, at, want)
		return w.wrong
	}
	w.times = append(w.times, time.Now())
	return nil
}

func (w *recordTimes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.times)
}

func (w *recordTimes) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong
}

// firstAfter waits until there are n records, and one after a moment, and returns when that came.
func (w *recordTimes) firstAfter(ctx context.Context, moment time.Time, n int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, safePatience)
	defer cancel()
	for {
		w.mu.Lock()
		i, _ := slices.BinarySearchFunc(w.times, moment, time.Time.Compare)
		if len(w.times) >= n && i < len(w.times) {
			defer w.mu.Unlock()
			return w.times[i], w.wrong
		}
		err := w.wrong
		w.mu.Unlock()
		if err != nil {
			return time.Time{}, err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return time.Time{}, fmt.Errorf("no new output: %w", err)
		}
	}
}

func (w *recordTimes) close() {
	w.cancel()
	<-w.done
}
