package server

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/lending"
	"github.com/cellvisor/cellvisor/wire"
)

// borrower is a part here that may hold memory on other servers.
type borrower struct {
	w         *worker
	loans     map[ident.ServerID]*borrowed
	told      []wire.WorkerLender // what its worker was told last
	seq       uint64              // of that
	proposing atomic.Bool
}

// borrowed is what it has at one lender.
type borrowed struct {
	lending.Lender
	as   ident.Part
	name ident.ServerName
	addr string
	asks uint64 // number of the last question
	last lending.Ask
	most ident.Bytes // that the worker may hold there as far as serve knows: it may not have heard of a lower limit yet
}

// borrow is the borrower's turn.
func (l *lendings) borrow(ctx context.Context, snap *snapshot) {
	self := l.s.store.Identity().Server
	seen := map[lending.Key]bool{}
	for i := range snap.state.VMs {
		vm := &snap.state.VMs[i]
		p := vm.PartOn(self, snap.status.Incarnation)
		if !vm.State.Active() || p == nil || p.Standby || p.Gone {
			continue
		}
		w := l.s.workers.worker(vm.ID)
		if w == nil {
			continue
		}
		stats := w.counters()
		if stats == nil || stats.Paging == nil {
			continue
		}
		k := lending.Key{VM: vm.ID, Part: p.Part}
		seen[k] = true
		b := l.parts[k]
		if b == nil || b.w != w {
			b = &borrower{w: w, loans: map[ident.ServerID]*borrowed{}}
			l.parts[k] = b
		}
		if b.heard(stats.Paging) {
			l.shared.mayDial(k.VM, b.told)
		}
		l.ask(snap, k, vm, b, stats)
		l.tell(ctx, snap, k, vm, b, w)
	}
	for k := range l.parts {
		if !seen[k] {
			delete(l.parts, k)
			l.shared.forget(k.VM)
		}
	}
}

// heard takes in what the worker says it holds. What an earlier serve told it is taken over; true: there was some.
func (b *borrower) heard(p *wire.WorkerPaging) (taken bool) {
	for _, h := range p.Loans {
		o := b.loans[h.Server]
		if h.LimitBytes == 0 && h.HeldBytes == 0 {
			continue
		}
		if o == nil || o.as != h.As && o.most == 0 && o.Limit == 0 {
			b.loans[h.Server] = &borrowed{as: h.As, name: h.Name, addr: h.Addr, most: max(h.LimitBytes, h.HeldBytes),
				Lender: lending.Lender{Server: h.Server, Cell: h.Cell, Limit: h.LimitBytes, Owes: true}}
			b.told = append(slices.DeleteFunc(b.told, func(t wire.WorkerLender) bool { return t.Server == h.Server }), h.WorkerLender)
			taken = true
		}
	}
	b.seq = max(b.seq, p.LendersSeq)
	for id, o := range b.loans {
		o.Held = 0
		for _, h := range p.Loans {
			if h.Server == id {
				o.Held = h.HeldBytes
			}
		}
		if p.LendersSeq >= b.seq { // it has carried out the last word
			o.most = max(o.Held, toldOf(b.told, id))
		}
	}
	return taken
}

func toldOf(told []wire.WorkerLender, id ident.ServerID) ident.Bytes {
	for _, t := range told {
		if t.Server == id {
			return t.LimitBytes
		}
	}
	return 0
}

// ask asks lenders.
func (l *lendings) ask(snap *snapshot, k lending.Key, vm *cells.VM, b *borrower, stats *wire.WorkerStats) {
	l.meet(snap, vm, b)
	var lenders []lending.Lender
	for _, o := range b.loans {
		lenders = append(lenders, o.Lender)
	}
	own := vm.OwnCells()
	p := stats.Paging
	out := p.FileBytes + stats.ResidentBytes - min(stats.ResidentBytes, p.LimitBytes)
	asks := lending.Plan(bootMicros(), lending.Borrower{Key: k, Out: out, Cells: own,
		Short: out > 0 && pressed(stats.ResidentBytes, p.LimitBytes),
		Fits:  lending.Fits(vm.Spec.MemoryBytes, snap.state.CellsMemory(own))}, lenders)
	for _, a := range asks {
		o := b.loans[a.Server]
		if o.asks != 0 && a == o.last && bootMicros()-o.Asked < lending.RenewEvery {
			continue // it was asked just that
		}
		o.asks = max(o.asks+1, uint64(bootMicros()))
		o.Asked, o.last, o.Owes = bootMicros(), a, true
		l.send(a.Server, &wire.LendMessage{Ask: &wire.LendAsk{VM: k.VM, Part: k.Part, As: o.as, Number: o.asks, Has: max(a.Has, o.most), Held: a.Held, Want: a.Want}})
	}
}

// pressed tells whether a part's limit keeps it from holding more.
func pressed(resident, limit ident.Bytes) bool { return resident+resident/8 >= limit }

// meet finds out whom a part could ask.
func (l *lendings) meet(snap *snapshot, vm *cells.VM, b *borrower) {
	own := vm.OwnCells()
	var others []*cells.Server
	for i := range snap.state.Servers {
		s := &snap.state.Servers[i]
		o := b.loans[s.ID]
		closed := s.Cordoned || !s.Lends() || vm.StandbyIn(s.Cell)
		if o != nil {
			o.Cell, o.Memory, o.name, o.Closed = s.Cell, s.Physical(), s.Name, closed
		} else if s.ID != snap.status.Server && !closed {
			others = append(others, s)
		}
	}
	slices.SortStableFunc(others, func(x, y *cells.Server) int { // those of the VM's own cells, then those that have most
		preferred := func(s *cells.Server) int {
			if slices.Contains(own, s.Cell) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(preferred(x), preferred(y)), cmp.Compare(y.Physical(), x.Physical()), cmp.Compare(x.ID, y.ID))
	})
	for _, s := range others {
		if len(b.loans) >= cells.MaxLenders {
			b.forgetIdle()
		}
		if len(b.loans) < cells.MaxLenders {
			b.loans[s.ID] = &borrowed{as: b.freeAs(), name: s.Name, Lender: lending.Lender{Server: s.ID, Cell: s.Cell, Memory: s.Physical()}}
		}
	}
	for id, o := range b.loans {
		if s := snap.state.Server(id); s == nil || s.State != cells.ServerLive {
			if o.Held == 0 && o.most == 0 {
				delete(b.loans, id)
			}
		}
	}
}

// forgetIdle makes room for another lender in the place of one that had nothing.
func (b *borrower) forgetIdle() {
	for _, id := range slices.Sorted(maps.Keys(b.loans)) {
		if o := b.loans[id]; o.Limit == 0 && o.Held == 0 && o.most == 0 && !o.Owes && o.asks != 0 {
			delete(b.loans, id)
			return
		}
	}
}

// freeAs is a part's number that no lender has.
func (b *borrower) freeAs() ident.Part {
	used := ident.PartSet(0).Set(0)
	for _, o := range b.loans {
		used = used.Set(o.as)
	}
	as := ident.Part(1)
	for used.Has(as) {
		as++
	}
	return as
}

// answered takes in a lender's answer.
func (l *lendings) answered(ctx context.Context, snap *snapshot, from ident.ServerID, a *wire.LendAnswer) {
	k := lending.Key{VM: a.VM, Part: a.Part}
	b, vm, w := l.parts[k], snap.state.VM(a.VM), l.s.workers.worker(a.VM)
	if b == nil || vm == nil || w == nil {
		return
	}
	o := b.loans[from]
	if o == nil || o.asks != a.Number {
		return
	}
	o.Answered(o.last, a.Limit)
	if a.Addr != "" {
		o.addr = a.Addr
	}
	l.tell(ctx, snap, k, vm, b, w)
}

// tell has the registry know on whom the part depends, and then the worker who its lenders are.
func (l *lendings) tell(ctx context.Context, snap *snapshot, k lending.Key, vm *cells.VM, b *borrower, w *worker) {
	var want, has []ident.ServerID
	for _, o := range vm.Loans() {
		if o.Part == k.Part {
			has = append(has, o.Server)
		}
	}
	var next []wire.WorkerLender
	for _, id := range slices.Sorted(maps.Keys(b.loans)) {
		o := b.loans[id]
		if o.Limit > 0 && o.addr != "" || o.Held > 0 || o.most > 0 {
			want = append(want, id)
		}
		if o.addr != "" && slices.Contains(has, id) && (o.Limit > 0 || o.most > 0) {
			limit := o.Limit
			if o.Closed { // whether it answers or not
				limit = 0
			}
			next = append(next, wire.WorkerLender{As: o.as, Server: id, Name: o.name, Cell: o.Cell, Addr: o.addr, LimitBytes: limit})
		}
	}
	slices.Sort(has)
	if !slices.Equal(want, has) {
		l.propose(ctx, b, cells.VMBorrows{VM: k.VM, Part: k.Part, Server: snap.status.Server, Incarnation: snap.status.Incarnation, Lenders: want})
	}
	if slices.Equal(next, b.told) {
		return
	}
	b.told = next
	b.seq = max(b.seq+1, uint64(bootMicros()))
	for _, n := range next {
		o := b.loans[n.Server]
		o.most = max(o.most, n.LimitBytes)
	}
	l.shared.mayDial(k.VM, next)
	w.post(func() { w.lenders = &wire.WorkerLenders{Seq: b.seq, Lenders: next} })
}

func (l *lendings) propose(ctx context.Context, b *borrower, c cells.VMBorrows) {
	if !b.proposing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer b.proposing.Store(false)
		ctx, cancel := context.WithTimeout(ctx, proposePatience)
		defer cancel()
		if err := l.s.propose(ctx, cells.Command{VMBorrows: &c}, nil); err != nil {
			l.log.Debug().Err(err).Uint64("vm", uint64(c.VM)).Msg("whom a part borrows from was not recorded")
		}
	}()
}

// lendShared is what others want to know about loans.
type lendShared struct {
	mu    sync.Mutex
	lent  map[lending.Key]lentTo             // protected by mu
	dials map[ident.VMID][]wire.WorkerLender // protected by mu
}

// lentTo is a loan of this server.
type lentTo struct{ limit, held ident.Bytes }

func (h *lendShared) setLent(loans []lending.Loan, terms map[lending.Key]lenderTerms) {
	lent := map[lending.Key]lentTo{}
	for _, o := range loans {
		if _, ok := terms[o.Key]; ok {
			lent[o.Key] = lentTo{o.Limit, o.Held}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lent = lent
}

// addStats adds what is lent.
func (h *lendShared) addStats(out map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out["lending.parts"] = uint64(len(h.lent))
	for _, o := range h.lent {
		out["lending.limit_bytes"] += uint64(o.limit)
		out["lending.held_bytes"] += uint64(o.held)
	}
}

// mayDial notes who lends to a VM's part here.
func (h *lendShared) mayDial(vm ident.VMID, lenders []wire.WorkerLender) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dials == nil {
		h.dials = map[ident.VMID][]wire.WorkerLender{}
	}
	h.dials[vm] = append(h.dials[vm][max(0, len(h.dials[vm])-cells.MaxLenders):], lenders...)
}

// forget says that no part of a VM is here any more.
func (h *lendShared) forget(vm ident.VMID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dials, vm)
}

// isLender tells whether an address is that of a server that lends to a VM's part here.
func (h *lendShared) isLender(vm ident.VMID, addr string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.dials[vm], func(t wire.WorkerLender) bool { return t.Addr == addr })
}
