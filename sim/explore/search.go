package explore

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// Result tells how far a search came.
type Result struct {
	States, Transitions, Ends uint64
	Depth                     int // of the farthest state
}

// Run visits all states within b, breadth first, so that a violation is reported with one of the shortest ways to it. It gives up with
// an error when there are more than maxStates.
func Run(b Bounds, maxStates uint64) (Result, error) {
	first, err := initial(b)
	if err != nil {
		return Result{}, err
	}
	x := &search{bounds: b, workers: make([]worker, runtime.GOMAXPROCS(0))}
	x.visit(first, nil)
	level := []*state{first}
	var r Result
	for len(level) > 0 {
		next, err := x.expand(level)
		r.States, r.Transitions, r.Ends = x.counts()
		if err != nil {
			return r, err
		}
		if r.States > maxStates {
			return r, fmt.Errorf("more than %d states at depth %d", maxStates, r.Depth)
		}
		level = next
		r.Depth++
		if b.Progress != nil {
			b.Progress(r, len(level))
		}
	}
	return r, nil
}

// search is the set of states seen, in shards so that workers seldom meet.
type search struct {
	bounds  Bounds
	shards  [64]shard
	workers []worker
}

type shard struct {
	mu   sync.Mutex
	seen map[xxh3.Uint128]struct{} // protected by mu
}

// worker belongs to one goroutine during expand.
type worker struct {
	buf               []byte
	next              []*state
	transitions, ends uint64
	err               error
}

func (x *search) counts() (states, transitions, ends uint64) {
	for i := range x.shards {
		states += uint64(len(x.shards[i].seen))
	}
	for i := range x.workers {
		transitions += x.workers[i].transitions
		ends += x.workers[i].ends
	}
	return states, transitions, ends
}

// visit tells whether s is new.
func (x *search) visit(s *state, w *worker) bool {
	if w == nil {
		w = &x.workers[0]
	}
	w.buf = s.encode(w.buf[:0])
	h := xxh3.Hash128(w.buf)
	sh := &x.shards[h.Lo%uint64(len(x.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.seen == nil {
		sh.seen = make(map[xxh3.Uint128]struct{})
	}
	if _, ok := sh.seen[h]; ok {
		return false
	}
	sh.seen[h] = struct{}{}
	return true
}

// expand returns the new successors of all states of a level.
func (x *search) expand(level []*state) ([]*state, error) {
	var wg sync.WaitGroup
	for n := range x.workers {
		w := &x.workers[n]
		w.next = nil
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := n; i < len(level) && w.err == nil; i += len(x.workers) {
				x.successors(level[i], w)
				level[i] = nil
			}
		}()
	}
	wg.Wait()
	var next []*state
	for i := range x.workers {
		if err := x.workers[i].err; err != nil {
			return nil, err
		}
		next = append(next, x.workers[i].next...)
	}
	return next, nil
}

// successors does everything that can happen in s.
func (x *search) successors(s *state, w *worker) {
	moved := x.messages(s, w)
	moved = x.vcpus(s, w) || moved
	for i := range s.parts {
		p := ident.Part(i)
		if s.parts[i].core == nil {
			continue
		}
		if epoch := ident.Epoch(len(s.epochs)); s.parts[i].epoch < epoch {
			moved = true
			x.try(s, w, func() string { return fmt.Sprintf("%v learns epoch %d", p, epoch) }, func(n *state) error {
				n.own(p).epoch = epoch
				return n.step(p, mem.Event{Kind: mem.EventMembers, Epoch: epoch, Members: n.epochs[epoch-1]}, nil)
			})
		}
		x.rehomes(s, w, p)
		if s.crashes > 0 {
			x.try(s, w, func() string { return fmt.Sprintf("%v dies", p) }, func(n *state) error { n.crash(p); return nil })
		}
	}
	if !moved {
		x.end(s, w)
	}
}

// rehomes has the directories at part p go to each other part. It is nothing that has to happen.
func (x *search) rehomes(s *state, w *worker, p ident.Part) {
	core := s.parts[p].core
	if s.rehomes == 0 || core.Epoch() == 0 {
		return
	}
	for page := range s.latest {
		if core.Directory(ident.PageNo(page)) != p {
			continue
		}
		for to := range s.parts {
			if ident.Part(to) == p || s.parts[to].core == nil {
				continue
			}
			x.try(s, w, func() string { return fmt.Sprintf("the directory of page %d is to go from %v to p%d", page, p, to) }, func(n *state) error {
				n.rehomes--
				return n.step(p, mem.Event{Kind: mem.EventRehome, Page: ident.PageNo(page), To: ident.Part(to)}, nil)
			})
		}
	}
}

// messages delivers, repeats or loses each message that is on its way.
func (x *search) messages(s *state, w *worker) bool {
	for i := range s.flight {
		if i > 0 && string(s.flight[i].enc) == string(s.flight[i-1].enc) {
			continue
		}
		m := s.flight[i]
		x.try(s, w, func() string { return "arrives: " + m.msg.String() }, func(n *state) error {
			n.flight = slices.Delete(n.flight, i, i+1)
			return n.step(m.msg.To, mem.Event{Kind: mem.EventMessage, Msg: m.msg, Body: m.body}, &m)
		})
		if s.repeats > 0 {
			x.try(s, w, func() string { return "repeated: " + m.msg.String() }, func(n *state) error {
				n.repeats--
				n.enqueue(m)
				return nil
			})
		}
		if s.loses > 0 {
			x.try(s, w, func() string { return "lost: " + m.msg.String() }, func(n *state) error {
				n.loses--
				n.flight = slices.Delete(n.flight, i, i+1)
				return nil
			})
		}
	}
	return len(s.flight) > 0
}

// vcpus lets each part's vCPU begin an operation, or try again the one whose page has been mapped.
func (x *search) vcpus(s *state, w *worker) bool {
	moved := false
	for i, p := range s.parts {
		if p.core == nil || p.waits {
			continue
		}
		if p.ready {
			moved = true
			x.try(s, w, func() string { return fmt.Sprintf("p%d goes on with its write to page %d", i, p.page) }, func(n *state) error {
				return n.retry(ident.Part(i))
			})
			continue
		}
		for page := range s.latest {
			for _, write := range []bool{false, true} {
				left := p.reads
				if write {
					left = p.writes
				}
				allowed := p.guest[page] == readWrite || p.guest[page] == readOnly && !write
				if left == 0 || s.ops == 0 || allowed && !write {
					continue // a read that needs no fault changes nothing, and what it would find is checked in every state
				}
				moved = true
				x.try(s, w, func() string { return fmt.Sprintf("p%d accesses page %d, write %t", i, page, write) }, func(n *state) error {
					return n.begin(ident.Part(i), ident.PageNo(page), write, allowed)
				})
			}
		}
	}
	return moved
}

// begin performs an access or faults.
func (s *state) begin(i ident.Part, page ident.PageNo, write, allowed bool) error {
	p := s.own(i)
	if write {
		p.writes--
	} else {
		p.reads--
	}
	s.ops--
	p.page, p.write = page, write
	if allowed {
		s.perform(p)
		return nil
	}
	p.waits = true
	return s.step(i, mem.Event{Kind: mem.EventFault, Page: page, Write: write}, nil)
}

func (s *state) perform(p *part) {
	s.values++
	p.memfd[p.page], s.latest[p.page] = s.values, s.values
}

// retry goes on with a write that faulted: the page may be gone again.
func (s *state) retry(i ident.Part) error {
	p := s.own(i)
	p.ready = false
	if p.guest[p.page] == readWrite {
		s.perform(p)
		return nil
	}
	p.waits = true
	return s.step(i, mem.Event{Kind: mem.EventFault, Page: p.page, Write: true}, nil)
}

func (s *state) crash(victim ident.Part) {
	s.crashes--
	s.parts[victim] = &part{}
	last := s.epochs[len(s.epochs)-1]
	s.epochs = append(slices.Clip(s.epochs), last.Clear(victim))
}

// end handles a state in which nothing moves by itself: timers fire; if that changes nothing, all must be over.
func (x *search) end(s *state, w *worker) {
	changed := false
	for i := range s.parts {
		if s.parts[i].core == nil {
			continue
		}
		p := ident.Part(i)
		x.try(s, w, func() string { return fmt.Sprintf("timers of %v", p) }, func(n *state) error {
			err := n.step(p, mem.Event{Kind: mem.EventTick}, nil)
			changed = changed || len(n.flight) > 0 || !bytes.Equal(n.parts[p].enc, s.parts[p].enc)
			return err
		})
	}
	if changed {
		return
	}
	w.ends++
	if err := s.checkEnd(); err != nil && w.err == nil {
		w.err = fmt.Errorf("%w\n%v", err, s.trace)
	}
}

// try does one action on a copy of s, and keeps the state that it leads to if that is new.
func (x *search) try(s *state, w *worker, name func() string, do func(*state) error) {
	if w.err != nil {
		return
	}
	w.transitions++
	n := s.fork()
	err := do(n)
	if err == nil {
		err = n.check()
	}
	if err != nil {
		w.err = fmt.Errorf("%w\n%v", err, &trace{before: s.trace, action: name()})
		return
	}
	n.prune(x.bounds.Canary)
	if x.visit(n, w) {
		n.trace = &trace{before: s.trace, action: name()}
		w.next = append(w.next, n)
	}
}
