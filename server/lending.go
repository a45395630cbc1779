package server

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/lending"
	"github.com/cellvisor/cellvisor/wire"
)

// lendings is this server as a lender and as a borrower of memory, by the rules of mem/lending. It has a loop of its own.
//
//	worker --WorkerPaging--> borrow --LendAsk--> lend --ToLender--> lender process
//	       <-WorkerLenders--        <-LendAnswer--
//	                 |
//	                 '--VMBorrows--> registry: the VM depends on the lender before anything is put there, and until nothing is there any more
type lendings struct {
	s     *Server
	log   zerolog.Logger
	inbox chan lendMail
	done  chan struct{}

	// The loop's:
	adopted ident.Incarnation // for which the lender process was looked for
	process *lenderProcess
	ledger  *lending.Ledger
	terms   map[lending.Key]lenderTerms
	addrs   map[lending.Key]string
	idle    int // turns without a loan
	parts   map[lending.Key]*borrower

	shared lendShared
}

// lendMail is a message from another server.
type lendMail struct {
	from ident.ServerID
	msg  *wire.LendMessage
}

// lenderTerms is what a lender has to know of a borrower beside the ledger.
type lenderTerms struct {
	as     ident.Part
	server ident.ServerID
	secret string
}

const (
	lendTurn  = 500 * time.Millisecond
	lendInbox = 256
	lendIdle  = 20 // turns after which a lender without a loan ends
)

func newLendings(s *Server) *lendings {
	return &lendings{s: s, log: s.log, inbox: make(chan lendMail, lendInbox), done: make(chan struct{}), process: newLenderProcess(s.workers),
		terms: map[lending.Key]lenderTerms{}, addrs: map[lending.Key]string{}, parts: map[lending.Key]*borrower{}}
}

// run is the loop.
func (l *lendings) run(ctx context.Context) {
	defer close(l.done)
	defer l.process.forget()
	if !l.s.cfg.Lend {
		return
	}
	turn := time.NewTicker(lendTurn)
	defer turn.Stop()
	for {
		select {
		case m := <-l.inbox:
			if snap := l.s.board.now(); snap.acting() && snap.self() != nil && l.adopted == snap.status.Incarnation {
				l.receive(ctx, snap, m)
			}
		case <-turn.C:
			if snap := l.s.board.now(); snap.acting() && snap.self() != nil {
				l.turn(ctx, snap)
			}
		case <-ctx.Done():
			return
		}
	}
}

// take takes another server's message.
func (l *lendings) take(e *wire.Envelope) error {
	m, err := wire.DecodeLend(e.Body)
	if err != nil || !l.s.cfg.Lend {
		return err
	}
	select {
	case l.inbox <- lendMail{e.Sender, m}:
	case <-l.done:
	default: // it is asked again
	}
	return nil
}

func (l *lendings) receive(ctx context.Context, snap *snapshot, m lendMail) {
	if a := m.msg.Ask; a != nil {
		l.answer(ctx, snap, m.from, a)
		return
	}
	l.answered(ctx, snap, m.from, m.msg.Answer)
}

func (l *lendings) turn(ctx context.Context, snap *snapshot) {
	if l.adopted != snap.status.Incarnation {
		if err := l.adopt(ctx, snap); err != nil {
			l.log.Error().Err(err).Msg("the process that lends memory")
			return
		}
	}
	l.lend(ctx, snap)
	l.borrow(ctx, snap)
}

// adopt begins an incarnation of this server, or goes on with one that an earlier serve began.
func (l *lendings) adopt(ctx context.Context, snap *snapshot) error {
	if err := l.process.adopt(snap.status.Incarnation); err != nil {
		return err
	}
	l.forgetLoans()
	if l.process.alive() {
		answer, err := l.process.exchange(ctx, wire.ToLender{Ask: true, UntilBootMicros: snap.status.LeaseUntil})
		if err != nil {
			return err
		}
		for _, o := range answer.Loans {
			k := lending.Key{VM: o.VM, Part: o.Part}
			l.ledger.Adopt(bootMicros(), k, o.Limit, o.Bytes, o.InMemory+o.OnDisk)
			l.terms[k] = lenderTerms{as: o.As, server: o.Server, secret: o.Secret}
			l.addrs[k] = o.Addr
		}
	}
	l.adopted = snap.status.Incarnation
	return nil
}

func (l *lendings) forgetLoans() {
	l.ledger = lending.NewLedger(l.s.cfg.MemoryBytes, "")
	clear(l.terms)
	clear(l.addrs)
}

// lend is the lender's turn.
func (l *lendings) lend(ctx context.Context, snap *snapshot) {
	if len(l.terms) > 0 && !l.process.alive() {
		l.log.Error().Msg("the process that lent memory has ended: what it held is lost")
		l.forgetLoans()
	}
	now, self := bootMicros(), snap.self()
	for k, t := range l.terms {
		if !l.borrows(snap.state, k, t.server) {
			l.ledger.End(k)
			delete(l.terms, k)
			delete(l.addrs, k)
		}
	}
	used, missing := l.s.workers.memoryUse(snap.state, self.ID)
	if self.Cordoned {
		used, missing = l.s.cfg.MemoryBytes, 1 // all of it is wanted back
	}
	l.ledger.Own(now, used, missing)
	l.ledger.Overdue(now)
	l.s.workers.setLent(l.ledger.Lent())
	switch {
	case len(l.terms) > 0:
		l.idle = 0
		if err := l.order(ctx, snap); err != nil {
			l.log.Error().Err(err).Msg("the process that lends memory")
		}
		if l.process.hung() {
			l.log.Error().Msg("the process that lends memory says nothing any more: it is killed")
			l.process.end()
		}
	case l.process.alive():
		if l.idle++; l.idle > lendIdle {
			l.process.end()
		}
	}
	l.shared.setLent(l.ledger.Loans(), l.terms)
}

// borrows tells whether a server still has a part of a VM that may hold something here: its own is there, and has asked lately or is registered.
func (l *lendings) borrows(st *cells.State, k lending.Key, server ident.ServerID) bool {
	vm := st.VM(k.VM)
	if vm == nil || !vm.State.Active() {
		return false
	}
	p := partOf(vm, k.Part)
	if p == nil || p.Server != server || p.Gone || p.Standby {
		return false
	}
	for _, b := range vm.Loans() {
		if b.Part == k.Part && b.Server == l.s.store.Identity().Server {
			return true
		}
	}
	for _, o := range l.ledger.Loans() {
		if o.Key == k {
			return bootMicros()-o.Renewed() < lending.Forgotten
		}
	}
	return false
}

func partOf(vm *cells.VM, part ident.Part) *cells.VMPart {
	for i := range vm.Parts {
		if vm.Parts[i].Part == part {
			return &vm.Parts[i]
		}
	}
	return nil
}

// answer deals with a borrower's question.
func (l *lendings) answer(ctx context.Context, snap *snapshot, from ident.ServerID, a *wire.LendAsk) {
	vm := snap.state.VM(a.VM)
	if vm == nil || !vm.State.Active() {
		return
	}
	if p := partOf(vm, a.Part); p == nil || p.Server != from || p.Gone || p.Standby {
		return
	}
	k := lending.Key{VM: a.VM, Part: a.Part}
	limit, ok := l.ledger.Renew(bootMicros(), k, a.Number, a.Has, a.Held, a.Want)
	if !ok {
		return
	}
	switch t := (lenderTerms{as: a.As, server: from, secret: vm.Secret}); {
	case limit > 0 || a.Has > 0 || a.Held > 0:
		l.terms[k] = t
		if err := l.order(ctx, snap); err != nil {
			l.log.Error().Err(err).Uint64("vm", uint64(a.VM)).Msg("cannot lend memory")
		}
	default:
		l.ledger.End(k)
		delete(l.terms, k)
		delete(l.addrs, k)
	}
	l.send(from, &wire.LendMessage{Answer: &wire.LendAnswer{VM: a.VM, Part: a.Part, Number: a.Number, Limit: limit, Addr: l.addrs[k]}})
}

func (l *lendings) send(to ident.ServerID, m *wire.LendMessage) {
	l.s.peers.Send(to, wire.EnvelopeLend, wire.AppendLend(nil, m))
}

// order has the lender process hold what the ledger says.
func (l *lendings) order(ctx context.Context, snap *snapshot) error {
	id, self := l.s.store.Identity(), snap.self()
	if err := l.process.start(wire.WorkerSpec{ClusterID: id.ClusterID, Server: id.Server, ServerName: self.Name, Cell: self.Cell, Incarnation: snap.status.Incarnation}, self.MemoryBytes); err != nil {
		return err
	}
	m := wire.ToLender{UntilBootMicros: snap.status.LeaseUntil}
	for _, o := range l.ledger.Loans() {
		if t, ok := l.terms[o.Key]; ok {
			m.Loans = append(m.Loans, wire.LenderLoan{VM: o.VM, Part: o.Part, As: t.as, Server: t.server, Secret: t.secret, Bytes: o.Most(), Limit: o.Limit, PageOut: o.Paged})
		}
	}
	answer, err := l.process.exchange(ctx, m)
	clear(l.addrs)
	for _, o := range answer.Loans {
		l.addrs[lending.Key{VM: o.VM, Part: o.Part}] = o.Addr
	}
	return err
}
