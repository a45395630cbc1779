package feed

import (
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// Snapshot is what a poll found.
type Snapshot struct {
	// At is the local time at which the poll ended.
	At     time.Time
	Status *api.StatusResponse
	// Each sorted by name, as the API lists them.
	Servers []*api.Server
	Cells   []*api.Cell
	VMs     []*api.VM
	// Events in order, the newest last, at most MaxEvents.
	Events []*api.Event
	// Watched is the VM asked for with Watch, with its workers' counters; nil if none was, or it is gone.
	Watched *api.VM
	// Counters are those of the server that answered, if WatchCounters is on.
	Counters *api.DebugCountersResponse
	// Stale is why the lists are those of an earlier poll although a server answered: typically no quorum. Nil if they are fresh.
	Stale error
	// Generation grows by one with each snapshot.
	Generation uint64
}

// Server returns the server of that name, nil if there is none.
func (s *Snapshot) Server(name string) *api.Server {
	for _, x := range s.Servers {
		if x.GetName() == name {
			return x
		}
	}
	return nil
}

// Cell returns the cell of that name, nil if there is none.
func (s *Snapshot) Cell(name string) *api.Cell {
	for _, x := range s.Cells {
		if x.GetName() == name {
			return x
		}
	}
	return nil
}

// VM returns the VM of that name, nil if there is none.
func (s *Snapshot) VM(name string) *api.VM {
	for _, x := range s.VMs {
		if x.GetName() == name {
			return x
		}
	}
	return nil
}

// Conn says how the connection to the cluster is.
type Conn struct {
	// Err is why the last poll failed, nil while connected and before the first answer.
	Err error
	// Attempt counts the failed polls in a row.
	Attempt int
	// RetryAt is when the next one starts.
	RetryAt time.Time
	// Addr is the address in use.
	Addr string
}

// Update is what a feed publishes.
type Update struct {
	// Snapshot is the newest one, nil before the first.
	Snapshot *Snapshot
	Conn     Conn
}

// Limits of the feed.
const (
	// MinInterval bounds the polls to ten a second.
	MinInterval = 100 * time.Millisecond
	// MaxEvents bounds the events kept.
	MaxEvents = 2000
	// MaxChunkBytes bounds the console bytes that wait to be drawn. Of a guest that prints faster, the newest bytes are kept.
	MaxChunkBytes = 1 << 20
)

// Backoff returns the pause before the attempt that follows the given number of failures: 250 ms, doubled each time, at most 5 s. There
// is one console an operator, not a fleet of them, so no jitter is needed.
func Backoff(failures int) time.Duration {
	pause := 250 * time.Millisecond
	for range min(failures, 10) - 1 {
		pause *= 2
	}
	return min(pause, 5*time.Second)
}
