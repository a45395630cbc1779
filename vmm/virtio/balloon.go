package virtio

import (
	"encoding/binary"
	"sync/atomic"
)

// Balloon is the device by which a guest gives back memory that it does not use: pages that its kernel has free, as it reports them by itself, and those
// that it puts into the balloon, whose wanted size is 0. What was given back takes no memory here and reads as zeros when the guest uses it again.
type Balloon struct {
	free   func(addr, n uint64) error
	actual atomic.Uint32 // pages in the balloon, as the driver says
	freed  atomic.Uint64 // bytes given back so far
}

const (
	balloonReporting = 1 << 5

	balloonInflate   = 0
	balloonDeflate   = 1
	balloonReports   = 2
	balloonQueueSize = 128
	balloonPage      = 4096
	balloonMaxPages  = 4096 // page numbers of one chain that are looked at
)

// NewBalloon makes a balloon. free is told that the guest has given n bytes of its memory at addr back, both multiples of a page: it may drop their
// contents, and must be done with that when it returns. An error of it breaks the device.
func NewBalloon(free func(addr, n uint64) error) *Balloon { return &Balloon{free: free} }

// Freed is how many bytes the guest has given back so far, again and again included.
func (b *Balloon) Freed() uint64 { return b.freed.Load() }

// Type implements Backend.
func (b *Balloon) Type() uint16 { return 5 }

// Features implements Backend.
func (b *Balloon) Features() uint64 { return balloonReporting }

// Queues implements Backend. A driver that does not take the reports' feature leaves their queue alone.
func (b *Balloon) Queues() []uint16 {
	return []uint16{balloonQueueSize, balloonQueueSize, balloonQueueSize}
}

// Config implements Backend: how many pages are wanted, and how many there are.
func (b *Balloon) Config() []byte {
	return binary.LittleEndian.AppendUint32(make([]byte, 4, 8), b.actual.Load())
}

// maxChainBytes: a driver reports many free blocks at once, of 4 MiB each with Linux. What a chain is read into is bounded besides.
func (b *Balloon) maxChainBytes() uint64 { return 1 << 32 }

// Reset implements Backend.
func (b *Balloon) Reset() { b.actual.Store(0) }

// Close implements Backend.
func (b *Balloon) Close() error { return nil }

// Handle implements Backend.
func (b *Balloon) Handle(n int, h *Handler) error {
	for !h.Held() {
		c, err := h.Pop()
		if err != nil || c == nil {
			return err
		}
		switch n {
		case balloonReports:
			err = b.report(c)
		case balloonInflate:
			err = b.inflate(c)
		case balloonDeflate: // the guest takes the pages as it finds them
		}
		if err != nil {
			return err
		}
		if err := h.Done(c); err != nil {
			return err
		}
	}
	return nil
}

// report drops the pages that a chain's buffers are: the driver uses none of them until the chain is given back.
func (b *Balloon) report(c *Chain) error {
	for _, s := range c.writable {
		from := (s.addr + balloonPage - 1) &^ (balloonPage - 1)
		to := (s.addr + uint64(s.length)) &^ (balloonPage - 1)
		if from < s.addr || to < s.addr { // wrapped around
			return errBroken
		}
		if to > from {
			if err := b.drop(from, to-from); err != nil {
				return err
			}
		}
	}
	return nil
}

// inflate drops the pages that a chain names.
func (b *Balloon) inflate(c *Chain) error {
	pfns := make([]byte, min(c.ReadLen()&^3, 4*balloonMaxPages))
	if err := c.Read(pfns); err != nil {
		return err
	}
	for ; len(pfns) > 0; pfns = pfns[4:] {
		if err := b.drop(uint64(binary.LittleEndian.Uint32(pfns))*balloonPage, balloonPage); err != nil {
			return err
		}
	}
	return nil
}

func (b *Balloon) drop(addr, n uint64) error {
	if err := b.free(addr, n); err != nil {
		return err
	}
	b.freed.Add(n)
	return nil
}
