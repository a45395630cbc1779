package virtio

import (
	"io"
	"sync"
)

// Console is a virtio console of one port, hvc0 in the guest.
type Console struct {
	out io.Writer

	mu    sync.Mutex // protects queue
	queue []byte     // typed and not read by the guest
}

const (
	consoleQueueSize  = 128
	consoleQueueBytes = 4096
	consoleMaxBytes   = 64 << 10 // of one chain
	consoleReceive    = 0
	consoleTransmit   = 1
)

// NewConsole makes a console that writes what the guest prints to out.
func NewConsole(out io.Writer) *Console { return &Console{out: out} }

// Receive hands bytes to the guest and tells how many there was room for. Wake queue 0 of the device then.
func (c *Console) Receive(b []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(b), consoleQueueBytes-len(c.queue))
	c.queue = append(c.queue, b[:n]...)
	return n
}

// Type implements Backend.
func (c *Console) Type() uint16 { return 3 }

// Features implements Backend.
func (c *Console) Features() uint64 { return 0 }

// Queues implements Backend.
func (c *Console) Queues() []uint16 { return []uint16{consoleQueueSize, consoleQueueSize} }

// Config implements Backend.
func (c *Console) Config() []byte { return nil }

// Reset implements Backend.
func (c *Console) Reset() {}

// Close implements Backend.
func (c *Console) Close() error { return nil }

// Handle implements Backend.
func (c *Console) Handle(n int, h *Handler) error {
	switch n {
	case consoleTransmit:
		return c.transmit(h)
	default:
		return c.receive(h)
	}
}

func (c *Console) transmit(h *Handler) error {
	for {
		chain, err := h.Pop()
		if err != nil || chain == nil {
			return err
		}
		b := make([]byte, min(chain.ReadLen(), consoleMaxBytes))
		if err := chain.Read(b); err != nil {
			return err
		}
		_, _ = c.out.Write(b) // see package serial
		if err := h.Done(chain); err != nil {
			return err
		}
	}
}

func (c *Console) receive(h *Handler) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		chain, err := h.Pop()
		if err != nil || chain == nil {
			return err
		}
		n := min(chain.WriteLen(), len(c.queue))
		if err := chain.Write(c.queue[:n]); err != nil {
			return err
		}
		c.queue = c.queue[n:]
		if err := h.Done(chain); err != nil {
			return err
		}
	}
	c.queue = nil
	return nil
}
