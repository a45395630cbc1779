package virtio

import "crypto/rand"

// Entropy gives the guest random numbers from the host's generator.
type Entropy struct{}

const (
	entropyQueueSize = 64
	entropyMaxBytes  = 64 << 10 // of one request; a driver asks again
)

// Type implements Backend.
func (Entropy) Type() uint16 { return 4 }

// Features implements Backend.
func (Entropy) Features() uint64 { return 0 }

// Queues implements Backend.
func (Entropy) Queues() []uint16 { return []uint16{entropyQueueSize} }

// Config implements Backend.
func (Entropy) Config() []byte { return nil }

// Reset implements Backend.
func (Entropy) Reset() {}

// Close implements Backend.
func (Entropy) Close() error { return nil }

// Handle implements Backend.
func (Entropy) Handle(_ int, h *Handler) error {
	for {
		c, err := h.Pop()
		if err != nil || c == nil {
			return err
		}
		b := make([]byte, min(c.WriteLen(), entropyMaxBytes))
		if _, err := rand.Read(b); err != nil {
			return err
		}
		if err := c.Write(b); err != nil {
			return err
		}
		if err := h.Done(c); err != nil {
			return err
		}
	}
}
