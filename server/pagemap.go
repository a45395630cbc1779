package server

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

const (
	mapPatience       = 2 * time.Second // for a worker to count millions of pages
	mapRegionsDefault = 1024
)

// mapTokens numbers the questions.
var mapTokens atomic.Uint64

// askMap asks a worker which pages it holds. Of two questions at once the first may go under: its answer is nil.
func (w *worker) askMap(ctx context.Context, ask wire.WorkerMapAsk) *wire.WorkerPageMap {
	answer := make(chan *wire.WorkerPageMap, 1)
	w.post(func() {
		if w.maps == nil {
			w.maps = map[uint64]chan *wire.WorkerPageMap{}
		}
		w.maps[ask.Token] = answer
		w.asked = &ask
	})
	defer func() {
		w.mu.Lock()
		delete(w.maps, ask.Token)
		w.mu.Unlock()
	}()
	select {
	case m := <-answer:
		return m
	case <-ctx.Done():
	case <-w.done:
	}
	return nil
}

// answered hands an answer to who waits for it.
func (w *worker) answered(m *wire.WorkerPageMap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(m.Shared) > wire.WorkerMapRegions || len(m.Modified) != len(m.Shared) {
		return
	}
	if c := w.maps[m.Token]; c != nil {
		select {
		case c <- m:
		default: // answered already
		}
	}
}

// PageMap implements api.CellvisorServer. The servers of the VM's parts are asked all at once.
func (v *service) PageMap(ctx context.Context, req *api.PageMapRequest) (*api.PageMapResponse, error) {
	snap, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	wanted := uint64(req.GetRegions())
	switch {
	case wanted == 0:
		wanted = mapRegionsDefault
	case wanted > wire.WorkerMapRegions:
		return nil, status.Errorf(codes.InvalidArgument, "%d regions are more than %d", wanted, wire.WorkerMapRegions)
	}
	out := &api.PageMapResponse{VmId: uint64(vm.ID), Pages: vm.Spec.MemoryBytes.Pages(), PagesPerRegion: 1}
	for out.PagesPerRegion*wanted < out.Pages {
		out.PagesPerRegion *= 2
	}
	for i := range vm.Parts {
		p := &vm.Parts[i]
		if p.Gone {
			continue
		}
		out.Holders = append(out.Holders, &api.PageHolder{Part: uint32(p.Part), Server: string(p.ServerName), Cell: string(p.Cell), Standby: p.Standby})
	}
	ctx, cancel := context.WithTimeout(ctx, mapPatience)
	defer cancel()
	self := v.s.store.Identity().Server
	for _, p := range vm.Parts {
		if w := v.s.workers.worker(vm.ID); p.Server == self && w != nil && !p.Gone {
			if m := w.askMap(ctx, wire.WorkerMapAsk{Token: mapTokens.Add(1), Pages: out.Pages, PagesPerRegion: out.PagesPerRegion}); m != nil {
				holder(out, uint32(p.Part)).Shared, holder(out, uint32(p.Part)).Modified = m.Shared, m.Modified
			}
		}
	}
	if !forwarded(ctx) {
		v.remoteMaps(ctx, snap, vm, req, out)
	}
	return out, nil
}

// holder finds the holder of a part, which is there.
func holder(m *api.PageMapResponse, part uint32) *api.PageHolder {
	for _, h := range m.GetHolders() {
		if h.GetPart() == part {
			return h
		}
	}
	return &api.PageHolder{}
}

// remoteMaps asks the servers of the VM's other parts.
func (v *service) remoteMaps(ctx context.Context, snap *snapshot, vm *cells.VM, req *api.PageMapRequest, out *api.PageMapResponse) {
	var others []ident.ServerID
	for _, p := range vm.Parts {
		if !p.Gone {
			others = append(others, p.Server)
		}
	}
	for name, m := range gather(ctx, v, snap, others, func(ctx context.Context, c api.CellvisorClient) (*api.PageMapResponse, error) {
		return c.PageMap(ctx, req)
	}) {
		if m.GetPagesPerRegion() != out.PagesPerRegion {
			continue
		}
		for _, h := range m.GetHolders() {
			if own := holder(out, h.GetPart()); h.GetServer() == name && own.Server == name {
				own.Shared, own.Modified = h.GetShared(), h.GetModified()
			}
		}
	}
}

// gather asks live servers, but not this one, all at once, and returns what those said that answered, by name.
func gather[M any](ctx context.Context, v *service, snap *snapshot, servers []ident.ServerID, ask func(context.Context, api.CellvisorClient) (M, error)) map[string]M {
	type reply struct {
		name string
		m    M
		err  error
	}
	ctx = v.forward(ctx)
	replies := make(chan reply, len(servers))
	asked := 0
	for _, id := range servers {
		sv := snap.state.Server(id)
		if sv == nil || id == v.s.store.Identity().Server || sv.State != cells.ServerLive {
			continue
		}
		client, err := v.peer(sv)
		if err != nil {
			continue
		}
		asked++
		go func() {
			m, err := ask(ctx, client)
			replies <- reply{string(sv.Name), m, err}
		}()
	}
	out := map[string]M{}
	for range asked {
		if r := <-replies; r.err == nil {
			out[r.name] = r.m
		}
	}
	return out
}
