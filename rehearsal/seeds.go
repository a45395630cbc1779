package rehearsal

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/drill"
)

// Summary is what many seeds of one drill have shown. Its JSON form is an interface: fields are only added.
type Summary struct {
	Drill   string        `json:"drill"`
	From    uint64        `json:"from"`
	To      uint64        `json:"to"`
	Seeds   uint64        `json:"seeds"` // that were run
	Failed  []uint64      `json:"failed"`
	Replay  string        `json:"replay"` // the command that runs the first of these again
	Seconds float64       `json:"seconds"`
	Virtual float64       `json:"virtual_seconds"`  // of all worlds together
	Report  *drill.Report `json:"report,omitempty"` // of the first failure, or of the only seed
}

// Seeds runs a drill in the worlds of the seeds from..to, both included, on all CPUs. Unless keepGoing it begins none after the first failure. progress
// is told how many are done, from several goroutines.
func Seeds(ctx context.Context, p *drill.Program, opt Options, from, to uint64, keepGoing bool, progress func(done uint64)) (Summary, error) {
	sum := Summary{Drill: p.Name, From: from, To: to, Failed: []uint64{}}
	began := time.Now()
	var next, failed atomic.Uint64
	var mu sync.Mutex // protects sum and first
	var first error
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for ctx.Err() == nil {
				seed := from + next.Add(1) - 1
				if seed > to || seed < from || failed.Load() > 0 && !keepGoing {
					return
				}
				o := opt
				o.Seed = seed
				rep, err := runSeed(ctx, p, o)
				if rep != nil && rep.Verdict != drill.Passed && ctx.Err() == nil || err != nil {
					failed.Add(1)
				}
				mu.Lock()
				sum.note(seed, rep, from == to)
				if err != nil && first == nil {
					first = err
				}
				done := sum.Seeds
				mu.Unlock()
				progress(done)
			}
		})
	}
	wg.Wait()
	slices.Sort(sum.Failed)
	if len(sum.Failed) > 0 {
		opt.Seed = sum.Failed[0]
		sum.Replay = Replay(p, opt)
	}
	sum.Seconds = float64(time.Since(began).Milliseconds()) / 1000
	if first == nil && ctx.Err() != nil {
		first = fmt.Errorf("interrupted after %d seeds", sum.Seeds)
	}
	return sum, first
}

func (s *Summary) note(seed uint64, rep *drill.Report, only bool) {
	if rep == nil {
		return
	}
	s.Seeds++
	s.Virtual += float64(rep.TookMs+rep.Healing.TookMs) / 1000
	if rep.Verdict != drill.Passed {
		s.Failed = append(s.Failed, seed)
	}
	if only || rep.Verdict != drill.Passed && (s.Report == nil || seed < s.Report.Seed) {
		s.Report = rep
	}
}

// runSeed turns a panic of a core, which is how it reports a broken invariant of its own, into an error.
func runSeed(ctx context.Context, p *drill.Program, opt Options) (rep *drill.Report, err error) {
	defer func() {
		if r := recover(); r != nil {
			stack := make([]byte, 8<<10)
			err = fmt.Errorf("seed %d: panic: %v\n%s\nreplay: %s", opt.Seed, r, stack[:runtime.Stack(stack, false)], Replay(p, opt))
		}
	}()
	return Run(ctx, p, opt)
}
