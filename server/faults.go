package server

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// faults is what drills have broken at this server. Nothing of it outlives the process, and nothing its lease: whoever broke it must say again and again
// that it is to stay so.
//
//	none --SetFaults--> in force --SetFaults without any, or the lease runs out--> none
type faults struct {
	s *Server

	mu      sync.Mutex
	active  []activeFault // protected by mu
	lease   *time.Timer   // protected by mu
	seed    uint64        // protected by mu
	crashes uint64        // protected by mu; the last crash of a guest that was asked for
	wedged  chan struct{} // protected by mu; nil, or closed when messages of others are handled again
	unwedge *time.Timer   // protected by mu; does that
}

// activeFault is a fault, and when it ends however often it is set.
type activeFault struct {
	*api.Fault
	until time.Time // zero: when its lease runs out
}

// maxFaultLease bounds for how long a server stays broken when nobody asks for it any more.
const maxFaultLease = time.Minute

// set puts faults in force in place of those that were. One that was in force before keeps its end.
func (f *faults) set(list []*api.Fault, lease time.Duration, seed uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	var next []activeFault
	for _, want := range list {
		a := activeFault{Fault: want}
		if i := slices.IndexFunc(f.active, func(o activeFault) bool { return proto.Equal(o.Fault, want) }); i >= 0 {
			a = f.active[i]
		} else if ms := want.GetLastsMs(); ms > 0 {
			a.until = now.Add(time.Duration(ms) * time.Millisecond)
		}
		next = append(next, a)
	}
	changed := seed != f.seed || !slices.EqualFunc(f.active, next, func(a, b activeFault) bool { return proto.Equal(a.Fault, b.Fault) })
	f.active, f.seed = next, seed
	if f.lease != nil {
		f.lease.Stop()
	}
	if len(next) > 0 {
		f.lease = time.AfterFunc(lease, func() {
			f.set(nil, 0, 0)
			f.s.audit.healed(f.s.cfg.Name)
		})
	}
	f.apply(now, lease, changed)
}

// says tells whether a request changes nothing: it only asks, or says again what is in force, as a drill does every second. Such a one is no act.
func (f *faults) says(req any) bool {
	r, ok := req.(*api.SetFaultsRequest)
	if !ok || !r.GetSet() {
		return ok
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.active) > 0 && r.GetSeed() == f.seed && slices.EqualFunc(f.active, r.GetFaults(), func(a activeFault, b *api.Fault) bool { return proto.Equal(a.Fault, b) })
}

// apply carries out what is in force; what has not changed goes on undisturbed. The caller holds mu.
func (f *faults) apply(now time.Time, lease time.Duration, changed bool) {
	links := make(map[ident.ServerID]link.Impairment)
	var disk error
	wedge := time.Duration(0)
	state := f.s.board.now().state
	for _, a := range f.active {
		if !a.until.IsZero() && !now.Before(a.until) {
			continue
		}
		left := lease
		if !a.until.IsZero() {
			left = min(left, a.until.Sub(now))
		}
		switch a.GetKind() {
		case api.FaultKind_FAULT_KIND_CUT, api.FaultKind_FAULT_KIND_SHAPE:
			if sv := state.ServerNamed(ident.ServerName(a.GetPeer())); sv != nil {
				links[sv.ID] = merge(links[sv.ID], a.Fault)
			}
		case api.FaultKind_FAULT_KIND_DISK_FULL:
			disk = unix.ENOSPC
		case api.FaultKind_FAULT_KIND_DISK_ERROR:
			disk = unix.EIO
		case api.FaultKind_FAULT_KIND_WEDGE:
			wedge = left
		}
	}
	if changed {
		f.s.peers.Impair(links, f.seed)
		f.s.store.Fail(disk)
	}
	f.wedge(wedge)
	f.tellWorkers(links, lease)
}

// wedge stops the handling of what other servers send for a while, or lets it go on. The caller holds mu.
func (f *faults) wedge(span time.Duration) {
	if f.unwedge != nil {
		f.unwedge.Stop()
	}
	switch {
	case span <= 0:
		f.endWedge()
		return
	case f.wedged == nil:
		f.wedged = make(chan struct{})
	}
	end := f.wedged
	f.unwedge = time.AfterFunc(span, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.wedged == end {
			f.endWedge()
		}
	})
}

// endWedge lets whoever waits go on. The caller holds mu.
func (f *faults) endWedge() {
	if f.wedged != nil {
		close(f.wedged)
		f.wedged = nil
	}
}

// await holds whoever handles a message of another server while a drill wants that.
func (f *faults) await(done <-chan struct{}) {
	f.mu.Lock()
	wedged := f.wedged
	f.mu.Unlock()
	if wedged == nil {
		return
	}
	select {
	case <-wedged:
	case <-done:
	}
}

func merge(im link.Impairment, f *api.Fault) link.Impairment {
	im.Cut = im.Cut || f.GetKind() == api.FaultKind_FAULT_KIND_CUT
	im.Delay = max(im.Delay, time.Duration(f.GetDelayMs())*time.Millisecond)
	im.Jitter = max(im.Jitter, time.Duration(f.GetJitterMs())*time.Millisecond)
	im.LossPermille = max(im.LossPermille, int(f.GetLossPermille()))
	return im
}

// tellWorkers passes on what concerns the workers of this server. The caller holds mu.
func (f *faults) tellWorkers(links map[ident.ServerID]link.Impairment, lease time.Duration) {
	m := &wire.WorkerFaults{LastMillis: int(lease.Milliseconds()), Seed: f.seed}
	for id, im := range links {
		m.Links = append(m.Links, wire.WorkerLinkFault{Server: id, Cut: im.Cut, DelayMillis: int(im.Delay.Milliseconds()),
			JitterMillis: int(im.Jitter.Milliseconds()), LossPermille: im.LossPermille})
	}
	slices.SortFunc(m.Links, func(a, b wire.WorkerLinkFault) int { return cmp.Compare(a.Server, b.Server) })
	f.s.workers.breakLinks(m)
}

// breakLinks tells all workers.
func (s *supervisor) breakLinks(m *wire.WorkerFaults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		w.post(func() { w.faults = m })
	}
}

// list returns what is in force.
func (f *faults) list() []*api.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*api.Fault
	for _, a := range f.active {
		if a.until.IsZero() || time.Now().Before(a.until) {
			out = append(out, a.Fault)
		}
	}
	return out
}

// needDrills refuses what only a rehearsal may do.
func (v *service) needDrills() error {
	if v.s.cfg.Drills {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"server %s refuses drills: drills = \"allow\" in the block cluster of its configuration lets them break it; `cellvisor up --drills allow` writes that", v.s.cfg.Name)
}

// SetFaults implements api.CellvisorServer.
func (v *service) SetFaults(_ context.Context, req *api.SetFaultsRequest) (*api.SetFaultsResponse, error) {
	if req.GetSet() {
		if err := v.needDrills(); err != nil {
			return nil, err
		}
		lease := time.Duration(req.GetLeaseMs()) * time.Millisecond
		if len(req.GetFaults()) > 0 && (lease <= 0 || lease > maxFaultLease) {
			return nil, status.Errorf(codes.InvalidArgument, "lease_ms %d must be from 1 to %d", req.GetLeaseMs(), maxFaultLease.Milliseconds())
		}
		for _, f := range req.GetFaults() {
			if err := v.checkFault(f); err != nil {
				return nil, err
			}
		}
		v.s.faults.set(req.GetFaults(), lease, req.GetSeed())
	}
	return &api.SetFaultsResponse{Server: string(v.s.cfg.Name), Allowed: v.s.cfg.Drills, Faults: v.s.faults.list()}, nil
}

func (v *service) checkFault(f *api.Fault) error {
	switch f.GetKind() {
	case api.FaultKind_FAULT_KIND_CUT, api.FaultKind_FAULT_KIND_SHAPE:
		sv := v.s.board.now().state.ServerNamed(ident.ServerName(f.GetPeer()))
		switch {
		case sv == nil:
			return status.Errorf(codes.NotFound, "no server is called %q", f.GetPeer())
		case sv.Name == v.s.cfg.Name:
			return status.Errorf(codes.InvalidArgument, "server %s has no connection with itself", sv.Name)
		case f.GetDelayMs() > 60_000 || f.GetJitterMs() > 60_000 || f.GetLossPermille() > 1000:
			return status.Error(codes.InvalidArgument, "a delay is at most 60000 ms, a loss at most 1000 of a thousand")
		}
		return nil
	case api.FaultKind_FAULT_KIND_DISK_FULL, api.FaultKind_FAULT_KIND_DISK_ERROR, api.FaultKind_FAULT_KIND_WEDGE:
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "fault %d is not known here", f.GetKind())
}

// CrashGuest implements api.CellvisorServer.
func (v *service) CrashGuest(ctx context.Context, req *api.CrashGuestRequest) (*api.CrashGuestResponse, error) {
	if err := v.needDrills(); err != nil {
		return nil, err
	}
	_, vm, err := v.vm(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	w := v.s.workers.worker(vm.ID)
	for _, p := range vm.Parts {
		if w == nil && p.Part == vm.Home {
			return nil, status.Errorf(codes.FailedPrecondition, "vm %s has no worker on server %s: its home is %s", vm.Spec.Name, v.s.cfg.Name, p.ServerName)
		}
	}
	f := v.s.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashes = max(f.crashes+1, uint64(bootMicros())) // rises over restarts of this process, too
	token := f.crashes
	w.post(func() {
		m := wire.WorkerFaults{}
		if w.faults != nil {
			m = *w.faults
		}
		m.Crash = token
		w.faults = &m
	})
	return &api.CrashGuestResponse{}, nil
}
