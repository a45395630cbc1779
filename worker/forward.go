package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/vmm/lapic"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/wire"
)

// Interrupts of a Linux machine over several parts travel between workers as notes, numbered from 1 in each boot for each receiver, and are sent
// again until they are acknowledged: each arrives once, in order. A vCPU that sends one waits for nobody.
//
//	Forward ──► queue ──► batch ──Request, until it is answered──► takeNotes: what is not known yet ──► Interrupts.Deliver, Rename

// note is one thing that a part tells another about interrupts.
type note struct {
	to      ident.VCPU // whom the message is for, or whose local APIC has another name
	message lapic.Message
	name    machine.NumberedName // valid if renamed
	renamed bool
}

const (
	noteBytes = 16
	noteBatch = 64
	// notesQueued bounds what waits for a part that does not answer. A vCPU cannot send for ever: it needs pages, which that part does not give either.
	notesQueued = 1 << 16
)

func (n note) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(n.to))
	b = le.AppendUint16(b, uint16(n.message))
	renamed := byte(0)
	if n.renamed {
		renamed = 1
	}
	b = append(b, byte(n.name.Mode), renamed)
	b = le.AppendUint16(b, n.name.Number)
	b = le.AppendUint32(b, n.name.LDR)
	return le.AppendUint32(b, n.name.DFR)
}

func decodeNote(b []byte) note {
	le := binary.LittleEndian
	n := note{to: ident.VCPU(le.Uint16(b)), message: lapic.Message(le.Uint16(b[2:])), renamed: b[5] != 0}
	if n.renamed {
		name := lapic.Name{ID: uint32(n.to), Mode: lapic.Mode(b[4]), LDR: le.Uint32(b[8:]), DFR: le.Uint32(b[12:])}
		n.name = machine.NumberedName{Name: name, Number: le.Uint16(b[6:])}
	}
	return n
}

// notes is both ends of that: what waits to be sent to each part, and how far each part's have come.
type notes struct {
	w      *Worker
	taking sync.Mutex // held over take; taken before mu

	mu    sync.Mutex // protects everything below; a leaf
	to    map[ident.Part]*noteQueue
	taken map[ident.Part]uint64 // the last number taken from each part
	since ident.Epoch           // with which this boot began; 0: the first. What was queued or sent before does not count any more
}

type noteQueue struct {
	waiting []note
	number  uint64        // of the first that waits
	more    chan struct{} // has a token when there is something new
}

func newNotes(w *Worker) *notes {
	return &notes{w: w, to: map[ident.Part]*noteQueue{}, taken: map[ident.Part]uint64{}}
}

// reset forgets everything: a new boot begins with the epoch. It comes before the worker has the members of that epoch.
func (x *notes) reset(epoch ident.Epoch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.since = epoch
	clear(x.taken)
	for _, q := range x.to {
		q.waiting, q.number = nil, 1
	}
}

// add queues a note for a part.
func (x *notes) add(to ident.Part, n note) {
	x.mu.Lock()
	defer x.mu.Unlock()
	q := x.to[to]
	if q == nil {
		q = &noteQueue{number: 1, more: make(chan struct{}, 1)}
		x.to[to] = q
		go x.send(to, q)
	}
	if len(q.waiting) >= notesQueued {
		x.w.fail(fmt.Errorf("%d interrupts wait for %s, which takes none", len(q.waiting), to))
		return
	}
	q.waiting = append(q.waiting, n)
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// send is the thread that sends a queue's notes, for as long as the VM runs.
func (x *notes) send(to ident.Part, q *noteQueue) {
	runtime.LockOSThread()
	raisePriority()
	for {
		select {
		case <-q.more:
		case <-x.w.ctx.Done():
			return
		}
		for x.sendBatch(to, q) {
		}
	}
}

// sendBatch sends what waits, at most a batch; it returns false if nothing does, or never will.
func (x *notes) sendBatch(to ident.Part, q *noteQueue) bool {
	x.mu.Lock()
	since, epoch, number, n := x.since, x.w.members.Load().Epoch, q.number, min(noteBatch, len(q.waiting))
	body := deviceRequest{op: opNotes, seq: number}.encode(make([]byte, 0, deviceRequestBytes+n*noteBytes))
	for _, one := range q.waiting[:n] {
		body = one.encode(body)
	}
	x.mu.Unlock()
	if n == 0 {
		return false
	}
	status, err := wire.DeviceNotReady, error(nil)
	if epoch >= since { // else these are of a boot that this part has not begun yet
		_, status, err = x.w.plane.pages.Request(to, epoch, wire.DeviceGeneric, body, time.Now().Add(x.w.patient(deviceDeadline)))
	}
	switch {
	case errors.Is(err, link.ErrClosed) || x.w.ctx.Err() != nil:
		return false
	case err == nil && status == wire.DeviceBad:
		x.w.fail(fmt.Errorf("%s refused interrupts", to))
		return false
	case err != nil || status != wire.DeviceOK:
		select {
		case <-x.w.ctx.Done():
		case <-time.After(deviceBackoff):
		}
		return true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.since == since {
		q.waiting = q.waiting[n:]
		q.number += uint64(n)
	}
	return true
}

// take takes a batch that another part sent in an epoch; those of it that came before are passed over. One of a former boot is not taken: this part may
// have begun the next before the sender has, which then forgets it.
func (x *notes) take(from ident.Part, epoch ident.Epoch, first uint64, body []byte) error {
	if len(body)%noteBytes != 0 || first == 0 {
		return fmt.Errorf("%w: interrupts of %d bytes from number %d", errBadRequest, len(body), first)
	}
	x.taking.Lock()
	defer x.taking.Unlock()
	x.mu.Lock()
	done, since := x.taken[from], x.since
	x.mu.Unlock()
	if epoch < since {
		return errNewLife
	}
	if first > done+1 {
		return fmt.Errorf("%w: interrupt %d after %d", errBadRequest, first, done)
	}
	for ; len(body) > 0; body, first = body[noteBytes:], first+1 {
		if first <= done {
			continue
		}
		n := decodeNote(body)
		if n.renamed {
			x.w.linux.span.interrupts.Rename(n.to, n.name)
			done = first
			continue
		}
		x.w.interrupts(mem.EventTurn)
		if !x.w.linux.span.interrupts.Deliver(from, n.to, n.message) {
			return fmt.Errorf("%w: an interrupt for vCPU %d, which is not here", errBadRequest, n.to)
		}
		done = first
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.since == since {
		x.taken[from] = max(x.taken[from], done)
	}
	return nil
}

// placement tells on which part each vCPU is at the begin of a boot.
func (w *Worker) placement(m wire.WorkerMembers) []ident.Part {
	at := make([]ident.Part, w.spec.VCPUs)
	for _, member := range m.Members {
		for _, id := range member.VCPUs {
			at[id] = member.Part
		}
	}
	return at
}

// forward queues an interrupt for a vCPU that is, or was, on another part. One for a part that is gone is lost with it.
func (w *Worker) forward(part ident.Part, id ident.VCPU, m lapic.Message) {
	w.linux.span.notes.add(part, note{to: id, message: m})
}

func (w *Worker) passed() { w.interrupts(mem.EventPass) }

// renamed tells all other parts.
func (w *Worker) renamed(id ident.VCPU, name machine.NumberedName) {
	for _, member := range w.members.Load().Members {
		if member.Part != w.spec.Part {
			w.linux.span.notes.add(member.Part, note{to: id, name: name, renamed: true})
		}
	}
}

// replyNotes answers another part's interrupts.
func (w *Worker) replyNotes(from ident.Part, r deviceRequest, req link.DeviceRequest) {
	if w.linux == nil || w.linux.span == nil {
		req.Reply(wire.DeviceBad, nil)
		return
	}
	err := w.linux.span.notes.take(from, r.epoch, r.seq, r.notes)
	if errors.Is(err, errNewLife) {
		req.Reply(wire.DeviceNotReady, nil)
		return
	}
	if err != nil {
		w.log.Error().Err(err).Stringer("from", from).Msg("interrupts")
		req.Reply(wire.DeviceBad, nil)
		return
	}
	req.Reply(wire.DeviceOK, nil)
}
