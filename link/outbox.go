package link

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Outbox collects page messages for any number of peers and sends them with one write for each peer. It belongs to one owner, such as
// the worker's core under its lock, and is reused without allocating.
type Outbox struct {
	plane *Pages
	used  []ident.Part // parts with something to send, in the order of their first message
	out   [ident.MaxParts]*wire.PagesWriter
}

// NewOutbox returns an empty outbox.
func (p *Pages) NewOutbox() *Outbox { return &Outbox{plane: p} }

// Add appends a message for m.To with its body (the page's contents, or records), which is copied once, here. It sets the fields that
// are the shell's: From, VM and BodyBytes. m.To must be another part.
func (o *Outbox) Add(m *wire.PageMsg, body []byte) {
	w := o.out[m.To]
	if w == nil {
		w = new(wire.PagesWriter)
		o.out[m.To] = w
	}
	if w.Items() == 0 {
		o.used = append(o.used, m.To)
	}
	m.VM, m.From = o.plane.cfg.VM, o.plane.cfg.Self
	w.Add(m, body)
}

// Flush sends everything, stamped with the epoch, and empties the outbox. It never blocks: what the socket does not take at once is
// queued, up to OverflowBytes, and what is beyond that breaks the connection. Messages to a peer that is not connected are dropped
// and counted.
func (o *Outbox) Flush(epoch ident.Epoch) {
	p := o.plane
	for _, part := range o.used {
		w := o.out[part]
		if c := p.conns[part].Load(); c != nil {
			c.send(w.Finish(wire.FrameHeader{VM: p.cfg.VM, Epoch: epoch, From: p.cfg.Self}))
		} else {
			p.count.dropped.Add(1)
		}
		w.Reset()
	}
	o.used = o.used[:0]
}
