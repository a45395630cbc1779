package monitor

import (
	"errors"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// Core is the deciding part of one server. It is not safe for concurrent use: one goroutine owns it.
type Core struct{}

// New returns the core of one server, or an error if the configuration or what is stored makes no sense.
func New(now ident.Micros, cfg Config) (*Core, error) { return nil, errors.New("monitor: not yet") }

// Step tells the core what happened. Time must not go back.
func (c *Core) Step(now ident.Micros, ev Event) {}

// HasReady tells whether there is something to carry out.
func (c *Core) HasReady() bool { return false }

// Ready hands out what is to be carried out. Advance must follow before the next Ready; Step may be called in between.
func (c *Core) Ready() Ready { return Ready{} }

// Advance says that the last Ready was carried out: Persist is on disk.
func (c *Core) Advance(now ident.Micros) {}

// NextDeadline is when a Tick is wanted; false if never.
func (c *Core) NextDeadline() (ident.Micros, bool) { return 0, false }

// Status tells where this server stands.
func (c *Core) Status(now ident.Micros) Status { return Status{} }

// State returns a copy of the replicated state as applied here.
func (c *Core) State() cells.State { return cells.State{} }

// EventsSince returns up to max replicated events with sequence numbers above seq, and the lowest number that is still kept.
func (c *Core) EventsSince(seq uint64, max int) (events []cells.Event, oldest uint64) { return nil, 0 }

// Counters returns what was counted since start.
func (c *Core) Counters() Counters { return Counters{} }

// Check panics if an invariant of the core is broken.
func (c *Core) Check() {}
