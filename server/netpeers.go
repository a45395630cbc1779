package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// joinSwitches tells the workers of this server who else is on the segments of the built-in switch that their VMs are on.
func (h *household) joinSwitches(state *cells.State) {
	for i := range state.VMs {
		vm := &state.VMs[i]
		if vm.Spec.Linux == nil || len(vm.Spec.Linux.Nets) == 0 || !vm.State.Active() {
			continue
		}
		if w := h.s.workers.worker(vm.ID); w != nil {
			w.join(switchPeers(state, vm))
		}
	}
}

// join tells a worker about its VM's peers, if that is news.
func (w *worker) join(peers *wire.WorkerPeers) {
	w.mu.Lock()
	same := w.peers != nil && reflect.DeepEqual(w.peers, peers)
	w.mu.Unlock()
	if !same {
		w.post(func() { w.peers = peers })
	}
}

// switchPeers lists the ports of all other VMs on the segments of vm.
func switchPeers(state *cells.State, vm *cells.VM) *wire.WorkerPeers {
	out := &wire.WorkerPeers{}
	for _, n := range vm.Spec.Linux.Nets {
		if n.Switch == "" {
			continue
		}
		segment := wire.WorkerSegment{Name: n.Switch}
		for i := range state.VMs {
			other := &state.VMs[i]
			if addr := switchAddr(other, n.Switch); addr != "" && other.ID != vm.ID {
				segment.Peers = append(segment.Peers, wire.WorkerPort{VM: other.ID, Addr: addr, Key: switchKey(vm, other, n.Switch)})
			}
		}
		out.Segments = append(out.Segments, segment)
	}
	return out
}

// switchAddr is where a VM's port on a segment is reached, "" if it has none now.
func switchAddr(vm *cells.VM, segment string) string {
	if vm.Spec.Linux == nil || !vm.State.Active() {
		return ""
	}
	for _, n := range vm.Spec.Linux.Nets {
		if n.Switch != segment {
			continue
		}
		for i := range vm.Parts {
			if p := &vm.Parts[i]; p.Part == vm.Home && p.Ready && !p.Gone {
				return p.NetAddr
			}
		}
	}
	return ""
}

// switchKey is the key of two VMs' ports on a segment. It comes from the secret of the older one, which all servers know and no worker but its
// own is told.
func switchKey(a, b *cells.VM, segment string) []byte {
	if a.ID > b.ID {
		a, b = b, a
	}
	secret, _ := hex.DecodeString(a.Secret) // made by a server of ours
	m := hmac.New(sha256.New, secret)
	fmt.Fprintf(m, "cellvisor switch %s of VMs %d and %d", segment, a.ID, b.ID)
	return m.Sum(nil)
}
