package feed

import (
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// Snapshot is the cluster as it was last heard of.
type Snapshot struct {
	// At is the local time at which it was.
	At     time.Time
	Status *api.StatusResponse
	// Each sorted by name, as the API lists them.
	Servers []*api.Server
	Cells   []*api.Cell
	VMs     []*api.VM
	// Events in order, the newest last, at most MaxEvents.
	Events []*api.Event
	// Operations by their number.
	Operations []*api.Operation
	// Load is nil until workers were heard of twice.
	Load *Load
	// What was asked for with Want, nil if it was not, or is not there yet, or is gone.
	Watched  *api.VM
	Map      *api.PageMapResponse
	Counters *api.DebugCountersResponse
	Slices   *api.SlicesResponse
	// Stale is why something asked for with Want could not be had although a server answers.
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

// Operation returns the operation of that number, nil if there is none.
func (s *Snapshot) Operation(id uint64) *api.Operation {
	for _, x := range s.Operations {
		if x.GetId() == id {
			return x
		}
	}
	return nil
}

// VMLoad returns the load of a VM, a zero one if it is not known.
func (s *Snapshot) VMLoad(id uint64) VMLoad {
	if s.Load == nil || s.Load.VMs[id] == nil {
		return VMLoad{}
	}
	return *s.Load.VMs[id]
}

// ServerLoad returns the load of a server, a zero one if it is not known.
func (s *Snapshot) ServerLoad(name string) ServerLoad {
	if s.Load == nil || s.Load.Servers[name] == nil {
		return ServerLoad{}
	}
	return *s.Load.Servers[name]
}

// Conn says how the connection to the cluster is.
type Conn struct {
	// Err is why the last connection failed, nil while connected and before the first answer.
	Err error
	// Attempt counts the failed connections in a row.
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
	// MinInterval bounds the updates to ten a second.
	MinInterval = 100 * time.Millisecond
	// MaxEvents bounds the events kept.
	MaxEvents = 2000
	// MaxChunkBytes bounds the console bytes that wait to be drawn. Of a guest that prints faster, the newest bytes are kept.
	MaxChunkBytes = 1 << 20
	// MapRegions is into how many regions the map of a VM's pages is divided at most.
	MapRegions = 2048
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
