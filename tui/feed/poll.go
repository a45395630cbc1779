package feed

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// poll asks for everything at once. It fails only if the status could not be had: a server without a quorum still answers that, and the
// lists are then those of the last poll.
func (f *Feed) poll(ctx context.Context, client api.CellvisorClient) (*Snapshot, error) {
	f.mu.Lock()
	watched, counters := f.watched, f.counters
	f.mu.Unlock()

	s := &Snapshot{}
	var calls sync.WaitGroup
	var statusErr error
	// Each call has a slot of its own here.
	var errs [4]error
	calls.Go(func() { s.Status, statusErr = client.Status(ctx, &api.StatusRequest{}) })
	calls.Go(func() {
		r, err := client.ListServers(ctx, &api.ListServersRequest{})
		s.Servers, errs[0] = r.GetServers(), err
	})
	calls.Go(func() {
		r, err := client.ListCells(ctx, &api.ListCellsRequest{})
		s.Cells, errs[1] = r.GetCells(), err
	})
	calls.Go(func() {
		r, err := client.ListVMs(ctx, &api.ListVMsRequest{})
		s.VMs, errs[2] = r.GetVms(), err
	})
	if watched != "" {
		calls.Go(func() {
			r, err := client.GetVM(ctx, &api.GetVMRequest{Name: watched})
			if status.Code(err) == codes.NotFound {
				err = nil
			}
			s.Watched, errs[3] = r.GetVm(), err
		})
	}
	if counters {
		calls.Go(func() {
			// Only an ornament: a server that does not answer it is not worth a word.
			s.Counters, _ = client.DebugCounters(ctx, &api.DebugCountersRequest{})
		})
	}
	calls.Wait()
	if statusErr != nil {
		return nil, fmt.Errorf("status: %w", statusErr)
	}
	f.generation++
	s.Generation = f.generation
	s.At = time.Now()
	f.fallBack(s, errs)
	f.mu.Lock()
	s.Events = f.events.published()
	f.mu.Unlock()
	return s, nil
}

// fallBack takes what could not be listed from the last snapshot.
func (f *Feed) fallBack(s *Snapshot, errs [4]error) {
	last := f.last
	if last == nil {
		last = &Snapshot{}
	}
	for i, err := range errs {
		if err == nil {
			continue
		}
		s.Stale = err
		switch i {
		case 0:
			s.Servers = last.Servers
		case 1:
			s.Cells = last.Cells
		case 2:
			s.VMs = last.VMs
		case 3:
			s.Watched = last.Watched
		}
	}
}
