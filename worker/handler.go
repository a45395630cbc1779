package worker

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// handler is what the page plane calls: pages go to the protocol, devices to the home, and what it sees of peers is a hint.
type handler struct{ *Worker }

func (h handler) HandlePages(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error {
	return h.plane.HandlePages(from, epoch, items)
}

func (h handler) PeerUp(ident.Part) {}

func (h handler) PeerDown(part ident.Part, reset bool) { h.hint(part, reset) }
