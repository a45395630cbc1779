package worker

import (
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/wire"
)

// How often parts tell home what their vCPUs waited for, and home looks whether a move pays: while there is anything to tell, and otherwise.
const (
	waitsEvery    = 20 * time.Millisecond
	waitsSeldom   = 200 * time.Millisecond
	localityAging = 250 * time.Millisecond
	hottestShown  = 8
)

// localityOf is the VM's option "locality": what is done about pages that other servers hold.
func localityOf(spec wire.WorkerSpec) locality.Policy {
	if p, ok := locality.Parse(spec.Options[wire.OptionLocality]); ok {
		return p
	}
	return locality.Default
}

// observes tells whether this VM's traffic is observed: only if it names a policy, so that others pay nothing for it.
func observes(spec wire.WorkerSpec) bool { return spec.Options[wire.OptionLocality] != "" }

// wanderings is home's side of moving vCPUs to where their pages are: the core, which is told by all parts what their vCPUs waited for.
type wanderings struct {
	mu      sync.Mutex
	chooser *locality.Chooser // protected by mu; nil at a part that is not home
	moved   uint64            // protected by mu; vCPUs that went because of a wish
	once    sync.Once
	wished  *locality.Wish // protected by mu; the last one, until it is known what came of it
}

// sitter is the thread of a vCPU, for telling whose fault it is.
type sitter struct {
	tid uint32
	by  uint16
}

// observing is this part's side; all of it is protected by plane.mu.
type observing struct {
	observer *locality.Observer // nil while the VM has one part only, and if it names no policy
	sitters  []sitter
}

// fault makes an event of a vCPU's fault. It requires plane.mu.
func (o *observing) fault(tid uint32, page ident.PageNo, write bool) mem.Event {
	ev := mem.Event{Kind: mem.EventFault, Page: page, Write: write}
	if o.observer == nil {
		return ev
	}
	for i := range o.sitters {
		if o.sitters[i].tid == tid {
			ev.By = o.sitters[i].by
			break
		}
	}
	if !write {
		ev.Around = o.observer.Around(page)
	}
	return ev
}

// note takes in what pages came and went. It requires plane.mu.
func (o *observing) note(all []mem.Traffic) {
	if o.observer == nil {
		return
	}
	for i := range all {
		o.observer.Note(&all[i])
	}
}

// rehome tells which directory should be elsewhere. It requires plane.mu.
func (o *observing) rehome() (page ident.PageNo, to ident.Part, ok bool) {
	if o.observer == nil {
		return 0, 0, false
	}
	return o.observer.Rehome()
}

// startObserving begins to count, once this part is one of several of a running VM.
func (w *Worker) startObserving() {
	if !observes(w.spec) || !w.spans() || len(w.members.Load().Members) < 2 {
		return
	}
	w.wanderings.mu.Lock()
	w.tellRooms()
	w.wanderings.mu.Unlock()
	w.wanderings.once.Do(func() {
		p := w.plane
		p.mu.Lock()
		p.observer = locality.NewObserver(localityOf(w.spec), w.spec.VCPUs)
		p.mu.Unlock()
		go w.observe()
	})
}

// observe watches over where this part's vCPUs have their pages, for as long as the VM lives.
func (w *Worker) observe() {
	p := w.plane
	var report []byte
	var aged time.Time
	var ids []ident.VCPU
	sitters := make([]sitter, 0, len(w.spec.LocalVCPUs)+1)
	for every := waitsSeldom; ; {
		select {
		case <-w.ctx.Done():
			return
		case <-w.stopped:
			return
		case <-time.After(every):
		}
		ids, sitters = ids[:0], sitters[:0]
		for _, v := range w.residents() {
			ids = append(ids, v.cpu.ID())
			if tid := v.cpu.TID(); tid > 0 {
				sitters = append(sitters, sitter{tid: uint32(tid), by: locality.By(v.cpu.ID())})
			}
		}
		p.mu.Lock()
		p.sitters = append(p.sitters[:0], sitters...)
		report = p.observer.AppendReport(report[:0], ids)
		if now := time.Now(); now.Sub(aged) >= localityAging {
			aged = now
			p.observer.Age()
		}
		p.mu.Unlock()
		if every = waitsSeldom; w.tellWaits(report) {
			every = waitsEvery
		}
	}
}

// tellWaits gives home this part's report and, at home, looks whether a move pays. It returns false if nothing is going on.
func (w *Worker) tellWaits(report []byte) bool {
	m := w.members.Load()
	if w.atHome() {
		if len(report) > 0 {
			w.hearWaits(w.spec.Part, report)
		}
		return w.wander()
	}
	if len(report) == 0 {
		return false
	}
	r := deviceRequest{op: opWaits, notes: report}
	w.plane.pages.Notify(m.Home, m.Epoch, wire.DeviceGeneric, r.encode(nil))
	return true
}

// hearWaits takes in what a part reports, at home.
func (w *Worker) hearWaits(from ident.Part, b []byte) {
	r, err := locality.ParseReport(from, b)
	if err != nil || !w.atHome() || w.linux != nil {
		return
	}
	c := &w.wanderings
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chooser == nil {
		c.chooser = locality.NewChooser(localityOf(w.spec), w.spec.VCPUs, "")
		w.tellRooms()
	}
	c.chooser.Take(bootMicros(), &r)
}

// tellRooms tells the chooser, if there is one, for how many vCPUs there are slots. It requires wanderings.mu.
func (w *Worker) tellRooms() {
	if w.wanderings.chooser == nil {
		return
	}
	for _, m := range w.members.Load().Members {
		w.wanderings.chooser.Room(m.Part, m.Slots)
	}
}

// wander has serve move a vCPU if that pays.
func (w *Worker) wander() bool {
	c := &w.wanderings
	c.mu.Lock()
	if c.chooser == nil || c.chooser.Idle() {
		c.mu.Unlock()
		return false
	}
	wish, ok := c.chooser.Tick(bootMicros())
	if ok {
		c.wished = &wish
	}
	c.mu.Unlock()
	if ok && w.guard.mayAct() {
		w.log.Info().Uint16("vcpu", uint16(wish.VCPU)).Stringer("from", wish.From).Stringer("to", wish.To).Int64("waited_us", int64(wish.Waited)).Msg("a vCPU should go to where its pages are")
		w.control.send(wire.FromWorker{Wish: &wire.WorkerWish{VCPU: wish.VCPU, To: wish.To}})
	}
	return true
}

// handed takes in how a hand-over has ended.
func (w *Worker) handedOver(id ident.VCPU, to ident.Part, moved bool) {
	c := &w.wanderings
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chooser == nil {
		return
	}
	mine := c.wished != nil && c.wished.VCPU == id && c.wished.To == to
	switch {
	case moved:
		if mine {
			c.moved++
		}
		c.chooser.Moved(bootMicros(), id, to)
	case mine:
		c.chooser.Refused(bootMicros())
	}
	if mine {
		c.wished = nil
	}
}

// localityStats tells what was observed and done.
func (w *Worker) localityStats() *wire.WorkerLocality {
	p := w.plane
	p.mu.Lock()
	if p.observer == nil {
		p.mu.Unlock()
		return nil
	}
	s := &wire.WorkerLocality{Policy: localityOf(w.spec).String(), Ahead: p.core.Counters().Prefetched, Homes: p.core.Counters().HomesGiven}
	hot := p.observer.Top(hottestShown)
	p.mu.Unlock()
	for _, h := range hot {
		r := wire.WorkerHotRegion{Page: h.Page, Pages: locality.RegionPages, WaitedMicros: h.Waited, Faults: h.Faults, Peer: h.Peer, Around: h.Around}
		if h.By != 0 {
			id := ident.VCPU(h.By - 1)
			r.VCPU = &id
		}
		s.Hot = append(s.Hot, r)
	}
	w.wanderings.mu.Lock()
	s.Moved = w.wanderings.moved
	w.wanderings.mu.Unlock()
	return s
}
