package server

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// sliceLogTurns bounds the turns that are remembered: at slices of 20 ms and four gangs at a time, some ten seconds.
const sliceLogTurns = 2048

// turn is a time during which a VM's part had slots here.
type turn struct {
	vm         ident.VMID
	number     uint64
	begin, end ident.Micros // end is 0 while it runs
	slots      []uint16
}

// sliceLog remembers who ran when on this server. The scheduler's loop writes it, calls of the API read it.
type sliceLog struct {
	mu    sync.Mutex
	ring  [sliceLogTurns]turn             // protected by mu
	next  int                             // protected by mu; counts the turns begun
	open  map[ident.VMID]int              // protected by mu; the turn that runs, by its count
	modes map[ident.VMID]wire.SliceMode   // protected by mu
	ahead map[ident.VMID][]wire.SliceTurn // protected by mu; what a part was told for times to come
}

// order notes what a part was told: it takes the place of what it was told for the same time and later.
func (l *sliceLog) order(now ident.Micros, o *gang.Order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open, l.modes, l.ahead = map[ident.VMID]int{}, map[ident.VMID]wire.SliceMode{}, map[ident.VMID][]wire.SliceTurn{}
	}
	l.pass(now, o.VM)
	at := max(now, o.At)
	ahead := slices.DeleteFunc(l.ahead[o.VM], func(t wire.SliceTurn) bool { return t.At >= at })
	ahead = append(ahead, wire.SliceTurn{Number: o.Number, Mode: o.Mode, At: at, CPUs: o.CPUs})
	l.ahead[o.VM] = append(ahead, o.Next...)
	l.pass(now, o.VM)
}

// pass notes what a part has been doing until now. It requires mu.
func (l *sliceLog) pass(now ident.Micros, vm ident.VMID) {
	ahead := l.ahead[vm]
	for len(ahead) > 0 && ahead[0].At <= now {
		l.turn(vm, &ahead[0])
		ahead = ahead[1:]
	}
	l.ahead[vm] = ahead
}

// turn notes what a part does. It requires mu.
func (l *sliceLog) turn(vm ident.VMID, t *wire.SliceTurn) {
	i, running := l.open[vm]
	if running && (t.Mode != wire.SliceRun || i+sliceLogTurns <= l.next) {
		l.finish(vm, i, t.At)
		running = false
	}
	l.modes[vm] = t.Mode
	if t.Mode != wire.SliceRun {
		return
	}
	if running && l.ring[i%sliceLogTurns].number == t.Number {
		return // said again
	}
	if running {
		l.finish(vm, i, t.At)
	}
	l.ring[l.next%sliceLogTurns] = turn{vm: vm, number: t.Number, begin: t.At, slots: t.CPUs}
	l.open[vm] = l.next
	l.next++
}

// finish ends a turn. It requires mu.
func (l *sliceLog) finish(vm ident.VMID, i int, at ident.Micros) {
	if i+sliceLogTurns > l.next {
		l.ring[i%sliceLogTurns].end = at
	}
	delete(l.open, vm)
}

// follow drops the parts that are no longer here.
func (l *sliceLog) follow(now ident.Micros, here func(ident.VMID) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for vm := range l.ahead {
		if l.pass(now, vm); !here(vm) {
			delete(l.ahead, vm)
		}
	}
	for vm, i := range l.open {
		if !here(vm) {
			l.finish(vm, i, now)
		}
	}
	for vm := range l.modes {
		if !here(vm) {
			delete(l.modes, vm)
		}
	}
}

// since returns copies of the turns that had not ended before a time, in the order of their begin, and whether any part is under orders.
func (l *sliceLog) since(now, at ident.Micros) (turns []turn, conducted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for vm := range l.ahead {
		l.pass(now, vm)
	}
	for i := max(0, l.next-sliceLogTurns); i < l.next; i++ {
		if t := l.ring[i%sliceLogTurns]; t.end == 0 || t.end >= at {
			turns = append(turns, t)
		}
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Compare(a.begin, b.begin) })
	for _, m := range l.modes {
		conducted = conducted || m != wire.SliceFree
	}
	return turns, conducted
}

// Slices implements api.CellvisorServer.
func (v *service) Slices(ctx context.Context, req *api.SlicesRequest) (*api.SlicesResponse, error) {
	snap := v.s.board.now()
	sv, err := v.server(snap, req.GetServer())
	if err != nil {
		return nil, err
	}
	if sv.ID != v.s.store.Identity().Server {
		client, err := v.at(ctx, sv)
		if err != nil {
			return nil, err
		}
		return client.Slices(v.forward(ctx), req)
	}
	turns, conducted := v.s.gangs.turns.since(bootMicros(), ident.Micros(req.GetSinceMicros()))
	out := &api.SlicesResponse{Server: string(sv.Name), NowMicros: uint64(bootMicros()), Slots: uint32(sv.Slots), Conducted: conducted}
	for i := range turns {
		out.Slices = append(out.Slices, sliceMessage(snap.state, sv.ID, &turns[i]))
	}
	return out, nil
}

func sliceMessage(st *cells.State, self ident.ServerID, t *turn) *api.Slice {
	out := &api.Slice{VmId: uint64(t.vm), Number: t.number, BeginMicros: uint64(t.begin), EndMicros: uint64(t.end)}
	for _, s := range t.slots {
		out.Slots = append(out.Slots, uint32(s))
	}
	vm := st.VM(t.vm)
	if vm == nil {
		return out
	}
	out.Vm = vm.Spec.Name
	for _, p := range vm.Parts {
		if !p.Gone && !p.Standby && p.Server != self && len(p.VCPUs) > 0 {
			out.With = append(out.With, string(p.ServerName))
		}
	}
	return out
}

// server finds a server by name, this one by "".
func (v *service) server(snap *snapshot, name string) (*cells.Server, error) {
	if name == "" {
		name = string(v.s.cfg.Name)
	}
	if sv := snap.state.ServerNamed(ident.ServerName(name)); sv != nil {
		return sv, nil
	}
	return nil, status.Errorf(codes.NotFound, "no server is called %q: `cellvisor server ls` lists those there are", name)
}

// at returns a connection to another server for a call that only that one can answer.
func (v *service) at(ctx context.Context, sv *cells.Server) (api.CellvisorClient, error) {
	switch {
	case forwarded(ctx):
		return nil, status.Errorf(codes.Aborted, "this is server %s, not %s", v.s.cfg.Name, sv.Name)
	case sv.State != cells.ServerLive:
		return nil, status.Errorf(codes.FailedPrecondition, "server %s is not live: only it could tell", sv.Name)
	}
	return v.peer(sv)
}
