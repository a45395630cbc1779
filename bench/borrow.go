package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/vmm/cpuidle"
)

// BorrowSettings say how the borrow benchmark runs.
type BorrowSettings struct {
	Rounds     int `json:"rounds"`      // in each of which both are started once
	MemoryMiB  int `json:"memory_mib"`  // of the VM
	HotPercent int `json:"hot_percent"` // of the table
	Seconds    int `json:"seconds"`     // that each share of cold rows is measured, of both, in each round
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

	Figures         []BorrowFigure `json:"figures"`    // by share of rows that are drawn from all of the table, without commits and with them
	TimeRatio       float64        `json:"time_ratio"` // of committed transactions with borrowHeadline cold rows
	TimeRatioLow    float64        `json:"time_ratio_low"`
	TimeRatioHigh   float64        `json:"time_ratio_high"`
	BorrowedPercent float64        `json:"borrowed_percent"` // of the table; the least of all rounds
	FetchUs         float64        `json:"fetch_us"`         // what a borrowed page takes to come, with making room for it, median
	RoundTripUs     float64        `json:"round_trip_us"`    // what a request and a page for an answer take between two processes here, with no protocol, median: the floor
}

// BorrowFigure is one share's. The two take turns of a tenth of a second, local first and borrowed first by turns, so that what the machine does besides, which goes on
// for seconds, meets both alike: each ratio is of two neighbours.
type BorrowFigure struct {
	ColdIn10000     int     `json:"cold_in_10000"` // rows
	Commits         bool    `json:"commits"`       // each transaction writes to a log on a disk, and flushes it
	Pairs           int     `json:"pairs"`
	LocalPerSecond  float64 `json:"local_per_second"` // medians
	BorrowPerSecond float64 `json:"borrow_per_second"`
	TimeRatio       float64 `json:"time_ratio"`     // of a transaction, borrowed over local: the median of all pairs
	TimeRatioLow    float64 `json:"time_ratio_low"` // between these two the median lies, with 95% confidence
	TimeRatioHigh   float64 `json:"time_ratio_high"`
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
	borrowSlices   = 10            // a second: long beside what pausing takes, short beside what else the machine does
)

// borrowRates is how many figures there are: each share without commits and with them.
const borrowRates = 8

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
	// While pages come from lenders CPUs are kept awake, which makes commits faster, too. Both sides have that, or the one that borrows would gain from it.
	if awake, err := cpuidle.Open(); err == nil {
		awake.Hold()
		defer awake.Close()
	}
	var fetch []float64
	pairs := make([][]borrowPair, borrowRates)
	for round := range set.Rounds {
		say(fmt.Sprintf("round %d of %d", round+1, set.Rounds))
		us, err := rep.round(ctx, near, far, pairs)
		if err != nil {
			return rep, err
		}
		fetch = append(fetch, us)
	}
	rep.FetchUs = middle(fetch)
	return rep, rep.compare(pairs)
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

// compare sums up all pairs.
func (rep *BorrowReport) compare(pairs [][]borrowPair) error {
	for i, all := range pairs {
		f := BorrowFigure{ColdIn10000: borrowCold[i/2], Commits: i%2 == 1, Pairs: len(all)}
		var local, borrowed, ratios []float64
		for _, p := range all {
			local, borrowed, ratios = append(local, p.local), append(borrowed, p.borrowed), append(ratios, quotient(p.local, p.borrowed))
		}
		f.LocalPerSecond, f.BorrowPerSecond, f.TimeRatio = middle(local), middle(borrowed), middle(ratios)
		f.TimeRatioLow, f.TimeRatioHigh = medianLies(ratios)
		if f.Commits && f.ColdIn10000 == borrowHeadline {
			rep.TimeRatio, rep.TimeRatioLow, rep.TimeRatioHigh = f.TimeRatio, f.TimeRatioLow, f.TimeRatioHigh
		}
		rep.Figures = append(rep.Figures, f)
	}
	if rep.BorrowedPercent < borrowLeast {
		return fmt.Errorf("only %.0f%% of the table were borrowed in a round, which says nothing: the machine is too busy, try again when it is quiet", rep.BorrowedPercent)
	}
	return nil
}
