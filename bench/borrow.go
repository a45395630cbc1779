package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// BorrowSettings say how the borrow benchmark runs.
type BorrowSettings struct {
	Rounds     int `json:"rounds"`      // in each of which both run once; the best of each figure counts: what else the machine does only makes them worse
	MemoryMiB  int `json:"memory_mib"`  // of the VM
	HotPercent int `json:"hot_percent"` // of the table
	Seconds    int `json:"seconds"`     // that each share of cold rows is measured
}

// Check tells what is wrong with the settings.
func (s BorrowSettings) Check() error {
	switch {
	case s.Rounds < 1 || s.Rounds > 100:
		return fmt.Errorf("rounds must be from 1 to 100, not %d", s.Rounds)
	case s.MemoryMiB < 32 || s.MemoryMiB > 1024:
		return fmt.Errorf("memory must be from 32 to 1024 MiB, not %d", s.MemoryMiB)
	case s.HotPercent < 1 || s.HotPercent > 40:
		return fmt.Errorf("hot must be from 1 to 40 percent, what has room in the half that is not borrowed, not %d", s.HotPercent)
	case s.Seconds < 1 || s.Seconds > 60:
		return fmt.Errorf("seconds must be from 1 to 60, not %d", s.Seconds)
	}
	return nil
}

// BorrowReport compares a VM that has half its memory in other cells with one that has all of it here. Names of fields are an interface: see docs/json.md.
type BorrowReport struct {
	Benchmark string         `json:"benchmark"`
	Host      Host           `json:"host"`
	Settings  BorrowSettings `json:"settings"`

	Figures         []BorrowFigure `json:"figures"`          // by share of rows that are drawn from all of the table, without commits and with them
	TimeRatio       float64        `json:"time_ratio"`       // of committed transactions with borrowHeadline cold rows
	BorrowedPercent float64        `json:"borrowed_percent"` // of the table; the least of all rounds
	FetchUs         float64        `json:"fetch_us"`         // what a borrowed page takes to come, with making room for it, median
	RoundTripUs     float64        `json:"round_trip_us"`    // what a request and a page for an answer take between two processes here, with no protocol, median: the floor
}

// BorrowFigure is one share's.
type BorrowFigure struct {
	ColdIn10000     int     `json:"cold_in_10000"` // rows
	Commits         bool    `json:"commits"`       // each transaction writes to a log on a disk, and flushes it
	LocalPerSecond  float64 `json:"local_per_second"`
	BorrowPerSecond float64 `json:"borrow_per_second"`
	TimeRatio       float64 `json:"time_ratio"` // of a transaction, borrowed over local
}

// borrowCold is what the payload does, in its order.
var borrowCold = []int{0, 1, 10, 100}

// borrowHeadline is the share that the report's own ratio is of: one row in a thousand lies outside of the hot set, unless it happens to lie in it.
const borrowHeadline = 10

// Shape of what runs: the first server has room for half of the VM, the two others for the rest and for what a lender keeps for itself.
const (
	borrowCells    = 3
	borrowProgram  = 8 * ident.MiB // of the VM's memory, beside the table
	borrowPromises = 4             // times its memory, that a server promises
	borrowPace     = 10            // MiB a second, that surely move from the paging file to lenders
	borrowLeast    = 45            // percent of the table that have to be borrowed
	borrowLog      = 4 * ident.MiB // the disk
)

// borrowRates is how many figures the payload tells: each share without commits and with them.
const (
	borrowRates = 8
)

// borrowRun is what one run came to.
type borrowRun struct {
	rates    []float64
	borrowed ident.Bytes // the most at any time that was looked
	fetchUs  float64
}

// Borrow compares on this machine.
func Borrow(ctx context.Context, exe string, set BorrowSettings, say func(string)) (rep BorrowReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = BorrowReport{Benchmark: "borrow", Host: ThisHost(), Settings: set}
	if rep.RoundTripUs, err = roundTrip(ctx, exe); err != nil {
		return rep, err
	}
	say("starting two clusters")
	memory := ident.Bytes(set.MemoryMiB) * ident.MiB
	near, err := startShapeIn(ctx, exe, quickDir(), local.Shape{Cells: borrowCells, PerCell: 1, Slots: slots, Memory: memory, Overcommit: borrowPromises, Lend: true})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, near.stop()) }()
	far, err := startShapeIn(ctx, exe, quickDir(), local.Shape{Cells: borrowCells, PerCell: 1, Slots: slots, Memory: (memory - borrowProgram) / 2, Overcommit: borrowPromises, Lend: true})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, far.stop()) }()
	var nearRuns, farRuns []borrowRun
	for round := range set.Rounds {
		for _, side := range []struct {
			name string
			c    *cluster
			runs *[]borrowRun
		}{{"memory of its own", near, &nearRuns}, {"half of it borrowed", far, &farRuns}} {
			say(fmt.Sprintf("round %d of %d: %s", round+1, set.Rounds, side.name))
			r, err := side.c.runRows(ctx, set)
			if err != nil {
				return rep, fmt.Errorf("%s: %w", side.name, err)
			}
			*side.runs = append(*side.runs, r)
		}
	}
	return rep, rep.compare(nearRuns, farRuns)
}

// borrowTrips is how many raw round trips are timed.
const borrowTrips = 2000

// roundTrip is the median of raw round trips, one right after the other: no CPU sleeps meanwhile.
func roundTrip(ctx context.Context, exe string) (float64, error) {
	e, err := startEcho(exe)
	if err != nil {
		return 0, err
	}
	defer e.stop()
	ns, err := e.measure(ctx, borrowTrips)
	if err != nil {
		return 0, err
	}
	slices.Sort(ns)
	return micros(float64(quantile(ns, 0.5))), nil
}

// quickDir is where disks cost next to nothing, so that they do not hide what memory costs; "" if there is no such place.
func quickDir() string {
	const dir = "/dev/shm"
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return ""
	}
	return dir
}

// runRows runs the payload once. When the table is full it waits until what has no room had time to get to lenders; both sides wait as long.
func (c *cluster) runRows(ctx context.Context, set BorrowSettings) (r borrowRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	wait := 3 + set.MemoryMiB/2/borrowPace
	memory := ident.Bytes(set.MemoryMiB) * ident.MiB
	spec := &api.VMSpec{Name: "rows", Payload: &api.VMSpec_Builtin{Builtin: "rows"}, Vcpus: 1, MemoryBytes: uint64(memory), Span: []string{"a"},
		Disks: []*api.Disk{{Name: "log", SizeBytes: uint64(borrowLog)}},
		Args:  fmt.Sprintf("%d %d %d %d commit", (memory-borrowProgram)/ident.MiB, set.HotPercent, wait, set.Seconds)}
	v, err := c.start(ctx, spec)
	for err == nil && !v.GetState().Ended() {
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		err = c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			got, err := svc.GetVM(ctx, &api.GetVMRequest{Name: spec.GetName()})
			v = got.GetVm()
			return err
		})
		r.look(v)
	}
	switch {
	case err != nil:
		return r, err
	case v.GetState() != api.VMState_VM_STATE_EXITED || v.GetExitStatus() != 0:
		return r, fmt.Errorf("VM %s is %s, status %d: %s\n%s", v.GetName(), v.GetState().Word(), v.GetExitStatus(), v.GetReason(), c.console(ctx, v))
	}
	err = c.client.Output(ctx, v.GetName(), 0, false, func(_ uint64, n uint32) error { r.rates = append(r.rates, float64(n)); return nil })
	if err == nil && len(r.rates) != borrowRates {
		err = fmt.Errorf("the guest tells of %d rates, want %d", len(r.rates), borrowRates)
	}
	return r, errors.Join(err, c.remove(ctx, v.GetName()))
}

// look takes in what the VM has borrowed.
func (r *borrowRun) look(v *api.VM) {
	for _, w := range v.GetWorkers() {
		held := ident.Bytes(0)
		for _, l := range w.GetCounters().GetPaging().GetLoans() {
			held += ident.Bytes(l.GetHeldBytes())
		}
		r.borrowed = max(r.borrowed, held)
		if us := w.GetCounters().GetPaging().GetInMicros(); us != 0 {
			r.fetchUs = float64(us)
		}
	}
}

// compare sets the two beside each other, round by round.
func (rep *BorrowReport) compare(near, far []borrowRun) error {
	table := ident.Bytes(rep.Settings.MemoryMiB)*ident.MiB - borrowProgram
	var fetch []float64
	least := far[0].borrowed
	for _, r := range far {
		least, fetch = min(least, r.borrowed), append(fetch, r.fetchUs)
	}
	rep.BorrowedPercent, rep.FetchUs = round3(100*float64(least)/float64(table)), middle(fetch)
	of := func(runs []borrowRun, i int) float64 {
		var all []float64
		for _, r := range runs {
			all = append(all, r.rates[i])
		}
		return slices.Max(all)
	}
	for i := range borrowRates {
		f := BorrowFigure{ColdIn10000: borrowCold[i/2], Commits: i%2 == 1, LocalPerSecond: of(near, i), BorrowPerSecond: of(far, i)}
		f.TimeRatio = quotient(f.LocalPerSecond, f.BorrowPerSecond)
		if f.Commits && f.ColdIn10000 == borrowHeadline {
			rep.TimeRatio = f.TimeRatio
		}
		rep.Figures = append(rep.Figures, f)
	}
	if rep.BorrowedPercent < borrowLeast {
		return fmt.Errorf("only %.0f%% of the table were borrowed in a round, which says nothing: the machine is too busy, try again when it is quiet", rep.BorrowedPercent)
	}
	return nil
}
