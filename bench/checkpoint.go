package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
)

// CheckpointSettings say how the checkpoint benchmark runs.
type CheckpointSettings struct {
	Rounds  int `json:"rounds"`
	Seconds int `json:"seconds"` // that each run of dirty lasts
}

// Check tells what is wrong with the settings.
func (s CheckpointSettings) Check() error {
	switch {
	case s.Rounds < 1 || s.Rounds > 100:
		return fmt.Errorf("rounds must be from 1 to 100, not %d", s.Rounds)
	case s.Seconds < 1 || s.Seconds > 600:
		return fmt.Errorf("seconds must be from 1 to 600, not %d", s.Seconds)
	}
	return nil
}

// CheckpointReport is the result of the checkpoint benchmark.
type CheckpointReport struct {
	Benchmark string             `json:"benchmark"`
	Host      Host               `json:"host"`
	Settings  CheckpointSettings `json:"settings"`
	Rates     []RateFigure       `json:"rates"`

	SlowdownPercent map[string]Slowdown `json:"slowdown_percent"` // by rate: "5", "10", "20", "40"
	PauseUs         float64             `json:"pause_us"`         // of a cut that finds no dirty page, fitted
	PausePerPageUs  float64             `json:"pause_per_page_us"`
	PauseMedianUs   float64             `json:"pause_median_us"` // at 20 checkpoints a second
	PauseP99Us      float64             `json:"pause_p99_us"`
}

// Slowdown is by how many percent each guest was slower than unprotected.
type Slowdown struct {
	Dirty float64 `json:"dirty"`
	Lock  float64 `json:"lock"`
}

// RateFigure is what was measured at one rate of checkpoints.
type RateFigure struct {
	PerSecond     int     `json:"per_second"`
	Dirty         float64 `json:"dirty_slowdown_percent"`
	Lock          float64 `json:"lock_slowdown_percent"`
	MadePerSecond float64 `json:"made_per_second"` // while dirty ran
	PauseUs       float64 `json:"pause_us"`        // mean
	PauseMedianUs float64 `json:"pause_median_us"` // while dirty ran
	PauseP99Us    float64 `json:"pause_p99_us"`
	StopUs        float64 `json:"stop_us"` // of the pause: until all vCPUs had stopped, mean
	StopP99Us     float64 `json:"stop_p99_us"`
	TakeUs        float64 `json:"take_us"` // of the pause: to capture, mean
	TakeP99Us     float64 `json:"take_p99_us"`
	DirtyPages    float64 `json:"dirty_pages"` // mean of a cut
	CutBytes      float64 `json:"cut_bytes"`   // mean of a cut, on the wire to one standby
}

const (
	checkpointMemory = 64 * ident.MiB
	lockRounds       = 2000000 // some seconds: the guest starts and ends in a fixed time, which is not to count
)

// checkpointRates are what is measured, in checkpoints a second; 0 is unprotected.
var checkpointRates = []int{0, 5, 10, 20, 40}

// costs is what one run found.
type costs struct {
	speed             float64 // pages written, or rounds, a second
	made, pause, page float64
	median, p99       float64 // of the pauses
	bytes             float64
	stop, stopP99     float64
	take, takeP99     float64
	took              time.Duration
}

// Checkpoint measures what checkpoints cost on this machine. say is told how far it is.
func Checkpoint(ctx context.Context, exe string, set CheckpointSettings, say func(string)) (rep CheckpointReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = CheckpointReport{Benchmark: "checkpoint", Host: ThisHost(), Settings: set, SlowdownPercent: map[string]Slowdown{}}
	say("starting a cluster of two cells")
	c, err := startCluster(ctx, exe, 2, slots, 512*ident.MiB)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	dirty, lock := map[int][]costs{}, map[int][]costs{}
	var big []costs
	for round := range set.Rounds {
		for _, rate := range checkpointRates { // in turn, so that a change of the machine's load hits all alike
			say(fmt.Sprintf("round %d of %d: %d checkpoints a second", round+1, set.Rounds, rate))
			d, err := c.costs(ctx, "dirty", fmt.Sprintf("1 0 %d", set.Seconds), rate, 1)
			if err != nil {
				return rep, err
			}
			l, err := c.costs(ctx, "lock", strconv.Itoa(lockRounds), rate, 2)
			if err != nil {
				return rep, err
			}
			dirty[rate], lock[rate] = append(dirty[rate], d), append(lock[rate], l)
		}
		b, err := c.costs(ctx, "dirty", fmt.Sprintf("20 0 %d", set.Seconds), 10, 1) // many dirty pages: for the cost of each
		if err != nil {
			return rep, err
		}
		big = append(big, b)
	}
	rep.fill(dirty, lock, big)
	return rep, nil
}

// median returns the median of one quantity over the rounds.
func median(all []costs, of func(costs) float64) float64 {
	var v []float64
	for _, c := range all {
		v = append(v, of(c))
	}
	return middle(v)
}

// slower is by how many percent a rate's runs were slower than the unprotected ones of the same rounds: the median over the rounds.
func slower(all map[int][]costs, rate int) float64 {
	var v []float64
	for i, c := range all[rate] {
		v = append(v, 100*(1-quotient(c.speed, all[0][i].speed)))
	}
	return round3(middle(v))
}

func (r *CheckpointReport) fill(dirty, lock map[int][]costs, big []costs) {
	pause, pages := func(c costs) float64 { return c.pause }, func(c costs) float64 { return c.page }
	for _, rate := range checkpointRates[1:] {
		of := func(of func(costs) float64) float64 { return round3(median(dirty[rate], of)) }
		f := RateFigure{PerSecond: rate, Dirty: slower(dirty, rate), Lock: slower(lock, rate), PauseUs: of(pause), DirtyPages: of(pages),
			PauseMedianUs: of(func(c costs) float64 { return c.median }), PauseP99Us: of(func(c costs) float64 { return c.p99 }),
			StopUs: of(func(c costs) float64 { return c.stop }), StopP99Us: of(func(c costs) float64 { return c.stopP99 }),
			TakeUs: of(func(c costs) float64 { return c.take }), TakeP99Us: of(func(c costs) float64 { return c.takeP99 }),
			CutBytes: of(func(c costs) float64 { return c.bytes }), MadePerSecond: of(func(c costs) float64 { return c.made / c.took.Seconds() })}
		r.Rates = append(r.Rates, f)
		r.SlowdownPercent[strconv.Itoa(rate)] = Slowdown{Dirty: f.Dirty, Lock: f.Lock}
	}
	r.PauseMedianUs = round3(median(dirty[20], func(c costs) float64 { return c.median }))
	r.PauseP99Us = round3(median(dirty[20], func(c costs) float64 { return c.p99 }))
	// Two points make the line: cuts with few dirty pages and cuts with many, at the same rate.
	few := dirty[10]
	r.PausePerPageUs = quotient(median(big, pause)-median(few, pause), median(big, pages)-median(few, pages))
	r.PauseUs = round3(max(0, median(few, pause)-r.PausePerPageUs*median(few, pages)))
}

var (
	pagesWritten = regexp.MustCompile(`dirty: \d+ s, (\d+) pages written`)
	roundsDone   = regexp.MustCompile(`lock: (\d+) of \d+, (\d+) ms`)
)

// speedOf is how fast a guest was by what it printed: by its own clock, so that the time to start it, to copy its memory and to notice its end
// does not count.
func speedOf(payload, console string) (float64, error) {
	if payload == "dirty" {
		all := pagesWritten.FindAllStringSubmatch(console, -1)
		if len(all) == 0 {
			return 0, fmt.Errorf("the console of VM guest has no count of pages:\n%s", console)
		}
		return strconv.ParseFloat(all[len(all)-1][1], 64)
	}
	all := roundsDone.FindAllStringSubmatch(console, -1)
	if len(all) < 2 {
		return 0, fmt.Errorf("the console of VM guest has no count of rounds:\n%s", console)
	}
	var of [4]float64
	for i, text := range []string{all[0][1], all[0][2], all[len(all)-1][1], all[len(all)-1][2]} {
		var err error
		if of[i], err = strconv.ParseFloat(text, 64); err != nil {
			return 0, err
		}
	}
	if of[3] <= of[1] {
		return 0, fmt.Errorf("VM guest's clock did not run:\n%s", console)
	}
	return 1000 * (of[2] - of[0]) / (of[3] - of[1]), nil
}

// costs runs one guest to its end under a rate of checkpoints, and returns how fast it was and what the checkpoints cost.
func (c *cluster) costs(ctx context.Context, payload, args string, rate int, vcpus uint32) (out costs, err error) {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	spec := &api.VMSpec{Name: "guest", Payload: &api.VMSpec_Builtin{Builtin: payload}, Args: args, Vcpus: vcpus, MemoryBytes: uint64(checkpointMemory),
		Span: []string{"a"}, OnLoss: api.OnLoss_ON_LOSS_STOP, Protect: "none"}
	if rate > 0 {
		spec.Protect, spec.CheckpointMs = "replica", uint32(1000/rate)
	}
	v, err := c.client.Run(ctx, spec)
	if err == nil {
		v, err = c.client.Wait(ctx, v.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_STARTED, nil)
	}
	if err != nil {
		return out, fmt.Errorf("starting VM guest: %s", api.Message(err))
	}
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		v, err = c.client.Wait(ctx, v.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_ENDED, nil)
		ended <- err
	}()
	last, lerr := map[string]uint64{}, error(nil)
	for running := true; running; {
		select {
		case err := <-ended:
			if err != nil {
				return out, err
			}
			running = false
		case <-time.After(500 * time.Millisecond): // the worker's counters go with it
			if rate > 0 {
				var now map[string]uint64
				if now, lerr = c.counters(ctx); lerr == nil && now["checkpoints.made"] >= last["checkpoints.made"] {
					last = now
				}
			}
		}
	}
	out.took = time.Since(began)
	if v.GetState() != api.VMState_VM_STATE_EXITED || v.GetExitStatus() != 0 {
		return out, fmt.Errorf("VM guest is %s, status %d: %s", v.GetState().Word(), v.GetExitStatus(), v.GetReason())
	}
	out.made = float64(last["checkpoints.made"])
	out.pause = quotient(float64(last["checkpoints.pause_micros_sum"]), out.made)
	out.page = quotient(float64(last["checkpoints.dirty_pages_sum"]), out.made)
	out.median, out.p99 = float64(last["checkpoints.pause_median_micros"]), float64(last["checkpoints.pause_p99_micros"])
	out.bytes = quotient(float64(last["checkpoints.share_bytes_sum"]), out.made)
	out.stop = quotient(float64(last["checkpoints.stop_micros_sum"]), out.made)
	out.take = quotient(float64(last["checkpoints.take_micros_sum"]), out.made)
	out.stopP99, out.takeP99 = float64(last["checkpoints.stop_p99_micros"]), float64(last["checkpoints.take_p99_micros"])
	var console bytes.Buffer
	if err := c.client.Console(ctx, v.GetName(), 0, false, &console); err != nil {
		return out, err
	}
	if out.speed, err = speedOf(payload, console.String()); err != nil {
		return out, err
	}
	return out, errors.Join(lerr, c.remove(ctx, v.GetName()))
}
