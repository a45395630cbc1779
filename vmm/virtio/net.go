package virtio

import (
	"fmt"
	"sync"
)

// Link is where a network card is plugged in: a switch's port, a TAP device.
type Link interface {
	// Send takes a frame from the guest. It must not keep it, nor block for long: a link that is full drops.
	Send(frame []byte)
	Close() error
}

// MAC is a card's address.
type MAC [6]byte

// Net is a network card without offloads: every frame is as it is on the wire.
type Net struct {
	mac  MAC
	link Link

	mu      sync.Mutex // protects everything below
	waiting [][]byte   // frames for the guest
	dropped uint64
}

const (
	netQueueSize   = 256
	netHeaderBytes = 12
	netReceive     = 0
	netTransmit    = 1

	netMAC    = 1 << 5
	netStatus = 1 << 16
	netMTU    = 1 << 3

	// MaxFrameBytes is the largest frame: an Ethernet header with a VLAN tag, and MTUBytes.
	MaxFrameBytes = 18 + MTUBytes
	// MTUBytes is what the card tells its driver.
	MTUBytes = 1500

	netMaxWaiting = 512
)

// NewNet makes a network card.
func NewNet(mac MAC, link Link) *Net { return &Net{mac: mac, link: link} }

// Deliver hands a frame to the guest; the card keeps it. It reports false if it was dropped. Wake queue 0 of the device then.
func (n *Net) Deliver(frame []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.waiting) >= netMaxWaiting || len(frame) > MaxFrameBytes {
		n.dropped++
		return false
	}
	n.waiting = append(n.waiting, frame)
	return true
}

// Type implements Backend.
func (n *Net) Type() uint16 { return 1 }

// Features implements Backend.
func (n *Net) Features() uint64 { return netMAC | netStatus | netMTU }

// Queues implements Backend.
func (n *Net) Queues() []uint16 { return []uint16{netQueueSize, netQueueSize} }

// Config implements Backend.
func (n *Net) Config() []byte {
	const linkUp = 1
	c := append([]byte(nil), n.mac[:]...)
	return append(c, linkUp, 0, 1, 0, MTUBytes&0xff, MTUBytes>>8)
}

// Reset implements Backend.
func (n *Net) Reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting = nil
}

// Close implements Backend.
func (n *Net) Close() error { return n.link.Close() }

// Handle implements Backend.
func (n *Net) Handle(queue int, h *Handler) error {
	if queue == netTransmit {
		return n.transmit(h)
	}
	return n.receive(h)
}

func (n *Net) transmit(h *Handler) error {
	for {
		c, err := h.Pop()
		if err != nil || c == nil {
			return err
		}
		length := c.ReadLen()
		if length < netHeaderBytes || length > netHeaderBytes+MaxFrameBytes {
			return fmt.Errorf("%w: a frame of %d bytes", errBroken, length-netHeaderBytes)
		}
		b := make([]byte, length)
		if err := c.Read(b); err != nil {
			return err
		}
		n.link.Send(b[netHeaderBytes:])
		if err := h.Done(c); err != nil {
			return err
		}
	}
}

func (n *Net) receive(h *Handler) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.waiting) > 0 {
		c, err := h.Pop()
		if err != nil || c == nil {
			return err
		}
		frame := n.waiting[0]
		n.waiting = n.waiting[1:]
		head := [netHeaderBytes]byte{10: 1} // one buffer
		if c.WriteLen() < len(head)+len(frame) {
			return fmt.Errorf("%w: a receive buffer of %d bytes", errBroken, c.WriteLen())
		}
		if err := c.Write(head[:]); err != nil {
			return err
		}
		if err := c.Write(frame); err != nil {
			return err
		}
		if err := h.Done(c); err != nil {
			return err
		}
	}
	return nil
}
