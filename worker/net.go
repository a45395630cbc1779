package worker

import (
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/tap"
	"github.com/cellvisor/cellvisor/vmm/virtio"
	"github.com/cellvisor/cellvisor/vmm/vswitch"
	"github.com/cellvisor/cellvisor/wire"
)

// listenNet opens the way to this VM's ports on the built-in switch, if it has any.
func (w *Worker) listenNet() error {
	for _, n := range w.spec.Linux.Nets {
		if n.Switch == "" {
			continue
		}
		l, err := vswitch.Listen(w.spec.VM, w.spec.ListenHost)
		if err != nil {
			return fmt.Errorf("built-in switch: %w", err)
		}
		w.linux.ports = l
		return nil
	}
	return nil
}

// netAddr is where other VMs reach this one's ports, "" if it has none.
func (w *Worker) netAddr() string {
	if w.linux == nil || w.linux.ports == nil {
		return ""
	}
	return w.linux.ports.Addr()
}

// heldTAP is a TAP interface that was opened before there is a card to deliver to.
type heldTAP struct {
	virtio.Link
	deliver atomic.Pointer[func([]byte) bool]
}

// holdTAPs opens the machine's TAP interfaces, which a jailed worker cannot. Frames that come before the card is there are lost, as on a wire
// that is not plugged in.
func (w *Worker) holdTAPs() error {
	for _, n := range w.spec.Linux.Nets {
		if n.TAP == "" {
			continue
		}
		held := &heldTAP{}
		link, err := tap.Open(n.TAP, func(frame []byte) bool {
			deliver := held.deliver.Load()
			return deliver != nil && (*deliver)(frame)
		})
		if err != nil {
			return err
		}
		held.Link = link
		if w.taps == nil {
			w.taps = map[string]*heldTAP{}
		}
		w.taps[n.TAP] = held
	}
	return nil
}

// usesSwitch tells whether the machine has a card on the built-in switch, which connects to other VMs' workers.
func (w *Worker) usesSwitch() bool {
	return w.spec.Linux != nil && slices.ContainsFunc(w.spec.Linux.Nets, func(n wire.WorkerNet) bool { return n.Switch != "" })
}

// addNets plugs the network cards in.
func (w *Worker) addNets(board *machine.Board) error {
	h := w.home.Load()
	for i, n := range w.spec.Linux.Nets {
		hw, err := net.ParseMAC(n.MAC)
		if err != nil || len(hw) != len(virtio.MAC{}) {
			return fmt.Errorf("network card %d: address %q", i, n.MAC)
		}
		err = board.AddNet(virtio.MAC(hw), func(deliver func([]byte) bool) (virtio.Link, error) {
			if n.TAP != "" {
				if held := w.taps[n.TAP]; held != nil {
					held.deliver.Store(&deliver)
					return cardLink{held.Link, h}, nil
				}
				link, err := tap.Open(n.TAP, deliver)
				return cardLink{link, h}, err
			}
			port := vswitch.NewPort(w.spec.VM, n.Switch, deliver)
			w.linux.ports.Add(port)
			return cardLink{port, h}, nil
		})
		if err != nil {
			return err
		}
	}
	w.joinSwitches()
	return nil
}

// setPeers takes serve's word on who else is on the switch.
func (w *Worker) setPeers(m wire.WorkerPeers) {
	g := w.linux
	if g == nil {
		return
	}
	g.mu.Lock()
	g.peers = m
	g.mu.Unlock()
	w.joinSwitches()
}

// joinSwitches tells the ports that there are about the peers that are known.
func (w *Worker) joinSwitches() {
	g := w.linux
	g.mu.Lock()
	peers := g.peers
	g.mu.Unlock()
	if g.ports == nil {
		return
	}
	for _, s := range peers.Segments {
		var all []vswitch.Peer
		for _, p := range s.Peers {
			all = append(all, vswitch.Peer{VM: p.VM, Addr: p.Addr, Key: p.Key})
		}
		g.ports.SetPeers(s.Name, all)
	}
}

// closeNet ends the listening for peers; the ports end with the board.
func (g *linuxGuest) closeNet() error {
	if g.ports == nil {
		return nil
	}
	return g.ports.Close()
}
