package link

import (
	"context"
	"sync/atomic"
)

// PagesCounters are counts since ListenPages.
type PagesCounters struct {
	FramesIn, FramesOut, BytesIn, BytesOut uint64

	OtherEpoch    uint64 // frames refused because they carry another epoch
	OtherVM       uint64 // connections dropped because a frame was for another VM, or from another part
	BadFrames     uint64 // connections dropped because of malformed bytes
	BadHandshakes uint64 // connections dropped because the other side is not one of us, or was silent
	Dropped       uint64 // outgoing batches for peers that were not connected, or cut
	Queued        uint64 // sends that the socket did not take whole
	Overflows     uint64 // connections dropped because the queue was full
	Resets        uint64 // connections to members that broke

	Dials, DialFailures, Accepts uint64
}

// pagesCounts is the live form of PagesCounters.
type pagesCounts struct {
	framesIn, framesOut, bytesIn, bytesOut                                            atomic.Uint64
	otherEpoch, otherVM, badFrames, badHandshakes, dropped, queued, overflows, resets atomic.Uint64
	dials, dialFailures, accepts                                                      atomic.Uint64
}

// Counters returns a snapshot.
func (p *Pages) Counters() PagesCounters {
	c := &p.count
	return PagesCounters{
		FramesIn: c.framesIn.Load(), FramesOut: c.framesOut.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		OtherEpoch: c.otherEpoch.Load(), OtherVM: c.otherVM.Load(), BadFrames: c.badFrames.Load(), BadHandshakes: c.badHandshakes.Load(),
		Dropped: c.dropped.Load(), Queued: c.queued.Load(), Overflows: c.overflows.Load(), Resets: c.resets.Load(),
		Dials: c.dials.Load(), DialFailures: c.dialFailures.Load(), Accepts: c.accepts.Load(),
	}
}

// background is the context of what ends by closing it, not by a context.
var background = context.Background()

// setDefault gives an option that was left zero its default.
func setDefault[T comparable](option *T, value T) {
	var zero T
	if *option == zero {
		*option = value
	}
}
