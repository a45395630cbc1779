package worker

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// The borrower's end of a loan. Serve agrees with lenders on limits, and has the registry know on whom the part depends, before it tells the worker:
//
//	WorkerLenders: a higher limit --> pages that leave go there
//	               a lower one    --> frames above it are read and put elsewhere --> LendCut: the lender has its memory back

// errLender says that a lender has answered, and does not have what it should.
var errLender = errors.New("it does not have the page as it was given")

// lendEpoch is the only epoch of the plane between a borrower and its lenders: who they are is the registry's business, and serve's.
const lendEpoch = 1

// listenLenders makes the plane to lenders.
func (w *Worker) listenLenders() (*link.Pages, error) {
	secret, err := hex.DecodeString(w.spec.Secret)
	if err != nil {
		return nil, fmt.Errorf("worker specification: secret: %w", err)
	}
	return link.ListenPages(link.PagesConfig{
		ClusterID: w.spec.ClusterID, VM: w.spec.VM, Self: 0, Server: w.spec.Server, Secret: secret, Seal: w.spec.Seal,
		ListenHost: w.spec.ListenHost, Handler: lenderHandler{}, Dial: w.usher.dialer(),
		Logf: func(format string, args ...any) { w.log.Debug().Msgf(format, args...) },
	})
}

// lenderHandler is the borrower's end of the plane: lenders ask nothing.
type lenderHandler struct{}

func (lenderHandler) HandlePages(ident.Part, ident.Epoch, *wire.PageItems) error {
	return wire.ErrBadFrame
}
func (lenderHandler) HandleDevice(_ ident.Part, _ ident.Epoch, req link.DeviceRequest) {
	req.Reply(wire.DeviceBad, nil)
}
func (lenderHandler) PeerUp(ident.Part)         {}
func (lenderHandler) PeerDown(ident.Part, bool) {}

// maxFrames bounds what is put to one lender: 4 TiB.
const maxFrames = 1 << 30

// ask asks a lender.
func (b *backing) ask(l *wire.WorkerLender, body []byte, within time.Duration) ([]byte, error) {
	return heed(b.plane.Request(l.As, lendEpoch, wire.DeviceGeneric, body, time.Now().Add(within)))
}

// heed looks at what a lender said.
func heed(answer []byte, status wire.DeviceStatus, err error) ([]byte, error) {
	if err == nil && status != wire.DeviceOK {
		err = errLender
	}
	return answer, err
}

// getFrame asks for a frame.
func getFrame(no uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{wire.LendGet}, no) }

// readLender reads a lender's frame, for which it may have been asked already. A lender that is silent may be back in a moment.
func (b *backing) readLender(f frame, buf []byte, early *link.Question) error {
	b.awake.note(bootMicros(), awakeLoan)
	var err error
	for began := time.Now(); time.Since(began) < lendPatience; time.Sleep(lendRetry) {
		var answer []byte
		if early != nil {
			answer, err = heed(early.Answer(began.Add(lendPatience / 2)))
			early = nil
		} else {
			answer, err = b.ask(&f.tier.lender, getFrame(f.no), lendPatience/2)
		}
		if err == nil {
			if copy(buf, answer) != len(buf) || xxh3.Hash(buf) != f.sum {
				err = errLender
			}
		}
		if err == nil || errors.Is(err, errLender) || errors.Is(err, link.ErrPeerGone) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("memory borrowed from server %s of cell %s is lost: %w", f.tier.lender.Name, f.tier.lender.Cell, err)
	}
	return nil
}

// putLender writes frames of a lender. It requires turn.
func (b *backing) putLender(t *tier, pieces []piece) error {
	for len(pieces) > 0 {
		n := min(len(pieces), wire.LendPutFrames)
		b.seq++
		b.body = binary.LittleEndian.AppendUint64(append(b.body[:0], wire.LendPut), b.seq)
		for _, p := range pieces[:n] {
			b.body = append(binary.LittleEndian.AppendUint32(b.body, p.to.no), p.page[:]...)
		}
		if _, err := b.ask(&t.lender, b.body, lendPut); err != nil {
			return fmt.Errorf("server %s does not take pages: %w", t.lender.Name, err)
		}
		b.mu.Lock()
		b.lent += uint64(n)
		b.mu.Unlock()
		pieces = pieces[n:]
	}
	return nil
}

// setFile changes how much may be in the paging file.
func (b *backing) setFile(n ident.Bytes) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tiers[0].limit = uint32(n >> ident.PageShift)
	b.changed.Broadcast()
}

// room is how many frames there are in all.
func (b *backing) room() (sum ident.Bytes) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tiers {
		sum += ident.Bytes(max(int(t.limit), t.used)) << ident.PageShift
	}
	return sum
}

// setLenders takes in who lends how much, and moves away what lenders want back. One call at a time.
func (b *backing) setLenders(m wire.WorkerLenders) error {
	b.mu.Lock()
	for _, t := range b.tiers[1:] {
		i := slices.IndexFunc(m.Lenders, func(l wire.WorkerLender) bool { return l.Server == t.lender.Server })
		if i < 0 {
			t.limit = 0
			continue
		}
		if l := m.Lenders[i]; l.Addr != t.lender.Addr || l.As != t.lender.As { // another process lends there now
			if t.used > 0 {
				b.mu.Unlock()
				err := fmt.Errorf("memory borrowed from server %s of cell %s is lost: the process that held it has ended", t.lender.Name, t.lender.Cell)
				b.fail(err)
				return err
			}
			t.limit = 0 // it goes, see below
		}
	}
	b.tiers = slices.DeleteFunc(b.tiers, func(t *tier) bool { return t.file == nil && t.limit == 0 && t.used == 0 })
	for _, l := range m.Lenders {
		i := slices.IndexFunc(b.tiers, func(t *tier) bool { return t.file == nil && t.lender.Server == l.Server })
		if i < 0 {
			if l.LimitBytes == 0 {
				continue
			}
			b.tiers = append(b.tiers, &tier{lender: l})
			i = len(b.tiers) - 1
		}
		b.tiers[i].limit = uint32(min(l.LimitBytes>>ident.PageShift, maxFrames))
	}
	members := []wire.WorkerMember{{Part: 0}}
	for _, t := range b.tiers[1:] {
		members = append(members, wire.WorkerMember{Part: t.lender.As, Server: t.lender.Server, Name: t.lender.Name, Addr: t.lender.Addr})
	}
	b.wanted = m.Seq
	b.changed.Broadcast()
	b.mu.Unlock()
	if err := b.plane.SetMembers(lendEpoch, members); err != nil {
		return fmt.Errorf("lenders of memory: %w", err)
	}
	return b.settle()
}

// settle moves away what lies above lenders' limits.
func (b *backing) settle() error {
	b.mu.Lock()
	seq, tiers := b.wanted, slices.Clone(b.tiers[1:])
	b.mu.Unlock()
	for _, t := range tiers {
		if err := b.giveBack(t); err != nil {
			return err
		}
	}
	b.mu.Lock()
	b.carried = max(b.carried, seq)
	b.mu.Unlock()
	return nil
}

// giveBack moves away what lies above a lender's limit, a few frames at a time: pages are read and written meanwhile.
func (b *backing) giveBack(t *tier) error {
	for {
		b.mu.Lock()
		slots := t.last(t.limit)
		b.mu.Unlock()
		if len(slots) == 0 {
			return nil
		}
		moved, err := b.relocate(slots, t, nil)
		b.mu.Lock()
		b.back += uint64(moved)
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// relocate moves slots away from a tier, at most as many as a lender takes at a time: to another one (nil: any), or to lower frames of the same. Those that are
// not there any more stay where they are.
func (b *backing) relocate(slots []uint32, from, to *tier) (moved int, err error) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.mu.Lock()
	if to == nil {
		to = b.choose(nil)
	}
	if to == nil {
		defer b.mu.Unlock()
		return 0, b.full()
	}
	var pieces []piece
	var old []frame
	for _, slot := range slots {
		f := b.where[slot]
		if f.tier != from {
			continue
		}
		no, ok := to.take(slot)
		if !ok {
			break
		}
		pieces, old = append(pieces, piece{slot, new([ident.PageSize]byte), frame{tier: to, no: no}}), append(old, f)
	}
	b.mu.Unlock()
	for i := range pieces {
		if err == nil {
			err = b.read(old[i], pieces[i].page[:], nil)
		}
	}
	failed := false
	if err == nil {
		err = b.put(to, pieces)
		failed = err != nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if failed {
		to.rest = time.Now().Add(lendRest)
	}
	for i, p := range pieces {
		if err != nil || b.where[p.slot] != old[i] { // or it was dropped meanwhile
			to.give(p.to.no)
			continue
		}
		b.where[p.slot] = p.to
		from.give(old[i].no)
		moved++
	}
	return moved, err
}

// tendPages is how many pages move from the paging file to lenders at a time.
const tendPages = 4096

const tendEvery = time.Second

// keep tends until the worker ends.
func (b *backing) keep(ctx context.Context) {
	turn := time.NewTicker(tendEvery)
	defer turn.Stop()
	for {
		select {
		case <-turn.C:
			b.tend()
		case <-ctx.Done():
			return
		}
	}
}

// tend gives back what could not be given back before, moves pages from the paging file to lenders that have room, and tells lenders what is not needed
// any more.
func (b *backing) tend() {
	if b.settle() != nil {
		return
	}
	for left := tendPages; left > 0; {
		b.mu.Lock()
		file, to := b.tiers[0], b.choose(b.tiers[0])
		slots := file.last(0)
		b.mu.Unlock()
		if to == nil || len(slots) == 0 {
			break
		}
		moved, err := b.relocate(slots, file, to)
		if moved == 0 || err != nil {
			break
		}
		left -= moved
	}
	b.mu.Lock()
	tiers := slices.Clone(b.tiers[1:])
	b.mu.Unlock()
	for _, t := range tiers {
		b.turn.Lock()
		b.mu.Lock()
		held := uint32(len(t.owner))
		less := held < t.cut
		t.cut = held
		b.mu.Unlock()
		if less {
			b.seq++
			body := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64([]byte{wire.LendCut}, b.seq), held)
			_, _ = b.ask(&t.lender, body, lendPut) // the lender's serve knows what is held, too
		}
		b.turn.Unlock()
	}
}

// stats adds what is where.
func (b *backing) stats(out *wire.WorkerPaging) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tiers[1:] {
		if t.limit == 0 && len(t.owner) == 0 {
			continue
		}
		l := t.lender
		l.LimitBytes = ident.Bytes(t.limit) << ident.PageShift
		out.Loans = append(out.Loans, wire.WorkerLoan{WorkerLender: l, HeldBytes: ident.Bytes(len(t.owner)) << ident.PageShift})
	}
	out.FileBytes = ident.Bytes(b.tiers[0].used) << ident.PageShift
	out.LendersSeq, out.Lent, out.Returned = b.carried, b.lent, b.back
	if b.stuck != nil && out.Error == "" {
		out.Error = b.stuck.Error()
	}
}
