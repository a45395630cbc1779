package kernel

import "github.com/cellvisor/cellvisor/ident"

type eventKind uint8

const (
	evMessage eventKind = iota
	evWake
	evCall
)

type event struct {
	at          ident.Micros
	seq         uint64 // breaks ties: first pushed, first served
	kind        eventKind
	late        bool // a wake that is due, if its node is not paused
	from, to    NodeID
	incarnation int // of the receiver
	msg         any
	f           func()
}

func (w *World) push(e event) {
	w.seq++
	e.seq = w.seq
	w.events.push(e)
}

// heap is a binary heap of events by time and sequence.
type heap []event

func (h heap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

func (h *heap) push(e event) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			return
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (h *heap) pop() event {
	s := *h
	e := s[0]
	last := len(s) - 1
	s[0] = s[last]
	s[last] = event{}
	s = s[:last]
	*h = s
	for i := 0; ; {
		low := 2*i + 1
		if low >= len(s) {
			return e
		}
		if low+1 < len(s) && s.less(low+1, low) {
			low++
		}
		if !s.less(low, i) {
			return e
		}
		s[i], s[low] = s[low], s[i]
		i = low
	}
}
