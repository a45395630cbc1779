package link

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// What is sent while a drill cuts a link waits, and arrives in its order when the link is mended; a new connection waits, too.
func TestPagesImpaired(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.connect()
	w.planes[0].Impair(map[ident.ServerID]Impairment{101: {Cut: true}}, 1)
	for page := range ident.PageNo(20) {
		w.send(0, 1, 1, page)
	}
	w.send(1, 0, 1, 7) // the other direction is not cut
	w.waitPage(0, 1, 7)
	for _, e := range w.rec[1].all() {
		if e.kind == "pages" {
			t.Fatalf("page %d came through the cut", e.page)
		}
	}
	w.planes[0].Impair(map[ident.ServerID]Impairment{101: {Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, LossPermille: 100}}, 1)
	for page := ident.PageNo(20); page < 40; page++ {
		w.send(0, 1, 1, page)
	}
	w.planes[0].Impair(nil, 0)
	w.send(0, 1, 1, 40)
	next := 0
	for page := range ident.PageNo(41) {
		var e event
		e, next = w.rec[1].wait(t, next, "the next page", func(e event) bool { return e.kind == "pages" })
		if e.page != page {
			t.Fatalf("page %d came where %d was due", e.page, page)
		}
	}
}

// Messages are held up by the impairment's measure and never overtake each other.
func TestDue(t *testing.T) {
	m := newImpaired(Impairment{Delay: time.Second, Jitter: 100 * time.Millisecond, LossPermille: 300}, 7)
	now, last, lost := time.Now(), time.Time{}, 0
	for range 1000 {
		at := m.due(now)
		if late := at.Sub(now); late < time.Second || at.Before(last) {
			t.Fatalf("due %v after it was sent, the one before %v", late, last.Sub(now))
		}
		if at.Sub(now) >= time.Second+Resend {
			lost++
		}
		last, now = at, now.Add(time.Second)
	}
	if lost < 200 || lost > 400 {
		t.Errorf("%d of 1000 were lost", lost)
	}
}

func TestPeersImpaired(t *testing.T) {
	p, b := pair(t)
	p[1].Impair(map[ident.ServerID]Impairment{2: {Delay: 10 * time.Millisecond}}, 1)
	p[1].Send(2, wire.EnvelopeRaft, []byte("slow"))
	b[2].wait(t, 0, "kind 2 from 1 epoch 3 incarnation 10: slow")
	p[1].Impair(map[ident.ServerID]Impairment{2: {Delay: time.Hour}}, 1)
	p[1].Send(2, wire.EnvelopeRaft, []byte("held"))
	p[1].Impair(nil, 0)
	p[1].Send(2, wire.EnvelopeRaft, []byte("mended"))
	b[2].wait(t, 0, "kind 2 from 1 epoch 3 incarnation 10: mended")
	p[1].Impair(map[ident.ServerID]Impairment{2: {Cut: true}}, 1)
	dropped := p[1].Counters().Dropped
	p[1].Send(2, wire.EnvelopeRaft, []byte("into the void"))
	waitCount(t, "dropped", func() uint64 { return p[1].Counters().Dropped }, dropped+1)
}
