// Package rehearsal runs drills on the simulator: the same files, unchanged, in virtual time, with neither KVM nor processes. It gives a drill the
// cluster of sim/guests, in which the production cores decide, in the words of the control API.
//
//	drill.Run ---Cluster, Host, Clock---> World ---commands, faults---> sim/guests: cores, workers, network, disks
//	                                        |
//	                     time passes in Pause, and in calls that wait for an answer
//
// One seed is one run: of the network, of when processes start, of the servers' clocks, and of the drill's own choices. The checks of the simulated
// cluster hold after every event; what breaks one ends the drill.
package rehearsal

import (
	"context"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/drill"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/guests"
)

// Shape is the cluster that a drill is run on.
type Shape struct{ Cells, PerCell int }

// Options say how a drill is rehearsed.
type Options struct {
	Shape   Shape // zero: what the drill needs
	Seed    uint64
	Canary  string // a bug planted in the simulated workers
	Step    func(drill.Step)
	Tracing bool // the report's cause comes with the end of the world's story
}

// Run runs a drill in the world of a seed.
func Run(ctx context.Context, p *drill.Program, opt Options) (*drill.Report, error) {
	if opt.Shape.Cells == 0 {
		opt.Shape.Cells = p.Cells
	}
	if opt.Shape.PerCell == 0 {
		opt.Shape.PerCell = p.Servers
	}
	w := newWorld(opt)
	rep, err := drill.Run(ctx, p, client{w}, host{w}, drill.Options{Seed: opt.Seed, Step: opt.Step, Clock: clock{w}, Replay: Replay(p, opt)})
	if err == nil && opt.Tracing && rep.Verdict != drill.Passed {
		rep.Why += "\n" + w.Trace()
	}
	return rep, err
}

// Replay returns the command that runs the same world again.
func Replay(p *drill.Program, opt Options) string {
	s := fmt.Sprintf("cellvisor drill run %s --sim --seeds %d..%d", p.File(), opt.Seed, opt.Seed)
	if opt.Shape.Cells != 0 && opt.Shape.Cells != p.Cells {
		s += fmt.Sprintf(" --cells %d", opt.Shape.Cells)
	}
	if opt.Shape.PerCell != 0 && opt.Shape.PerCell != p.Servers {
		s += fmt.Sprintf(" --servers %d", opt.Shape.PerCell)
	}
	if opt.Canary != "" {
		s += " --canary " + opt.Canary
	}
	return s
}

// Canaries lists the bugs that can be planted.
func Canaries() []string { return []string{guests.CanaryReleaseEarly, guests.CanaryStaleReplica} }

// world is one run's world, and what the adapters share.
type world struct {
	*guests.World
	seed   uint64
	faults map[string][]*api.Fault // in force, by server
	stops  map[int]bool            // processes that are stopped
}

func newWorld(opt Options) *world {
	w := &world{World: guests.New(opt.Seed, opt.Shape.Cells, opt.Shape.PerCell, opt.Tracing), seed: opt.Seed, faults: make(map[string][]*api.Fault),
		stops: make(map[int]bool)}
	w.Canary = opt.Canary
	w.World.World.Start()
	return w
}

// clock is the world's time. Its zero is that of Unix time, which the servers' clocks are near.
type clock struct{ w *world }

// Now implements drill.Clock.
func (c clock) Now() time.Time { return time.UnixMicro(int64(c.w.Now())).UTC() }

// Stepped implements drill.Clock.
func (clock) Stepped() bool { return true }

// Pause implements drill.Clock.
func (c clock) Pause(_ context.Context, d time.Duration, _ <-chan struct{}) error {
	return c.w.pass(ident.Micros(max(d.Microseconds(), 1)))
}

// pass lets time pass.
func (w *world) pass(span ident.Micros) error {
	if err := w.Run(w.Now() + span); err != nil {
		return fmt.Errorf("the simulated cluster broke an invariant: %w", err)
	}
	return nil
}
