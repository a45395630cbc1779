package feed

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// Want names what a screen shows beyond what every snapshot has. It is asked for again and again while it is wanted.
type Want struct {
	// VM is the VM whose parts' counters are wanted, Map the one whose pages are.
	VM, Map string
	// Counters is the server whose counters are wanted, Slices the one whose turns are.
	Counters, Slices string
}

// detail is what was wanted, as far as it could be had.
type detail struct {
	want     Want
	vm       *api.VM
	pages    *api.PageMapResponse
	counters *api.DebugCountersResponse
	slices   *api.SlicesResponse
	err      error
}

// detailTimeout bounds one round of questions.
const detailTimeout = 3 * time.Second

// fetchDetail asks for all that is wanted at once.
func fetchDetail(ctx context.Context, client api.CellvisorClient, w Want) detail {
	ctx, cancel := context.WithTimeout(ctx, detailTimeout)
	defer cancel()
	d := detail{want: w}
	var calls sync.WaitGroup
	var errs [4]error
	if w.VM != "" {
		calls.Go(func() {
			r, err := client.GetVM(ctx, &api.GetVMRequest{Name: w.VM})
			d.vm, errs[0] = r.GetVm(), err
		})
	}
	if w.Map != "" {
		calls.Go(func() { d.pages, errs[1] = client.PageMap(ctx, &api.PageMapRequest{Name: w.Map, Regions: MapRegions}) })
	}
	if w.Counters != "" {
		// Only an ornament: a server that does not answer it is not worth a word.
		calls.Go(func() { d.counters, _ = client.DebugCounters(ctx, &api.DebugCountersRequest{Server: w.Counters}) })
	}
	if w.Slices != "" {
		calls.Go(func() { d.slices, errs[3] = client.Slices(ctx, &api.SlicesRequest{Server: w.Slices}) })
	}
	calls.Wait()
	for _, err := range errs {
		// What is gone is no trouble of the connection: the screen says itself that it is not there.
		if err != nil && status.Code(err) != codes.NotFound && ctx.Err() == nil {
			d.err = err
		}
	}
	return d
}

func (d *detail) into(s *Snapshot) {
	s.Watched, s.Map, s.Counters, s.Slices, s.Stale = d.vm, d.pages, d.counters, d.slices, d.err
}
