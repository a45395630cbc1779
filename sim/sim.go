// Package sim runs the production cores in simulated worlds: seeded networks that lose, repeat, reorder, delay and cut; parts that crash,
// pause and return; virtual time. A scenario is a world and what must hold in it. One seed determines one run, so that a failure is
// replayed by its seed.
//
//	sim           the list of scenarios, and running many seeds of one in parallel
//	sim/kernel    virtual time, network, nodes: what all worlds are made of
//	sim/pages     the page protocol under faults
//	sim/explore   the page protocol in small worlds, all reachable states
//	sim/cluster   servers and their worker processes: what the worlds of agreement, containment, recovery and drills are made of
//	sim/simtest   what the tests of all scenarios have in common
//	sim/locality  vCPUs and pages that come together, under each policy, with the page protocol below
//	sim/recover   protection by replicas; and, as scenario disks, mirrored disks under loss of power and damage
package sim

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Scenario is a kind of world and its checks.
type Scenario struct {
	Name string
	Doc  string // one line
	// Run builds the world of a seed, runs it to its end and returns what was violated, with the end of the trace. canary is one of
	// Canaries, a bug planted in the cores, or empty.
	Run      func(seed uint64, canary string) error
	Canaries []string
}

var scenarios []Scenario

// Register adds a scenario to the list; packages of scenarios call it from init.
func Register(s Scenario) {
	if _, ok := Lookup(s.Name); ok || s.Name == "" || s.Run == nil {
		panic("sim: scenario " + s.Name + " is registered twice or incomplete")
	}
	scenarios = append(scenarios, s)
}

// Scenarios lists all scenarios by name.
func Scenarios() []Scenario {
	all := slices.Clone(scenarios)
	slices.SortFunc(all, func(a, b Scenario) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Lookup finds a scenario by its name.
func Lookup(name string) (Scenario, bool) {
	for _, s := range scenarios {
		if s.Name == name {
			return s, true
		}
	}
	return Scenario{}, false
}

// Failure is a seed whose run violated something.
type Failure struct {
	Scenario string
	Seed     uint64
	Canary   string
	Err      error
}

// Replay returns the command that runs the same world again.
func (f Failure) Replay() string {
	s := fmt.Sprintf("cellvisor sim --scenario %s --seeds %d..%d", f.Scenario, f.Seed, f.Seed)
	if f.Canary != "" {
		s += " --canary " + f.Canary
	}
	return s
}

// Error tells what was violated and how to see it again.
func (f Failure) Error() string {
	return fmt.Sprintf("scenario %s, seed %d: %v\nreplay: %s", f.Scenario, f.Seed, f.Err, f.Replay())
}

// RunSeeds runs the worlds of the seeds from..to, both included, on as many threads as GOMAXPROCS, and returns how many it ran and the
// failures by rising seed. It starts no further seed once maxFailures (if above 0) have failed. progress, unless nil, is called after
// each run, perhaps from several goroutines at once.
func RunSeeds(s Scenario, from, to uint64, canary string, maxFailures int, progress func()) (ran uint64, failures []Failure) {
	var next, done, failed atomic.Uint64
	var mu sync.Mutex // protects failures
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				seed := from + next.Add(1) - 1
				if seed > to || seed < from || maxFailures > 0 && failed.Load() >= uint64(maxFailures) {
					return
				}
				err := runSeed(s, seed, canary)
				done.Add(1)
				if err != nil {
					failed.Add(1)
					mu.Lock()
					failures = append(failures, Failure{Scenario: s.Name, Seed: seed, Canary: canary, Err: err})
					mu.Unlock()
				}
				if progress != nil {
					progress()
				}
			}
		}()
	}
	wg.Wait()
	slices.SortFunc(failures, func(a, b Failure) int {
		if a.Seed < b.Seed {
			return -1
		}
		return 1
	})
	return done.Load(), failures
}

// runSeed turns a panic of a core, which is how it reports a broken invariant of its own, into an error.
func runSeed(s Scenario, seed uint64, canary string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			stack := make([]byte, 8<<10)
			err = fmt.Errorf("panic: %v\n%s", r, stack[:runtime.Stack(stack, false)])
		}
	}()
	return s.Run(seed, canary)
}
