package machine

import (
	"sync"
	"sync/atomic"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// gate holds vCPU threads out of the guest.
//
//	held ──open──► open ──hold──► held
//	any  ──stop──► stopped
type gate struct {
	isOpen atomic.Bool

	mu      sync.Mutex // protects everything below
	changed *sync.Cond
	stopped bool
	members []*kvm.VCPU
	inside  int // threads that are not waiting at the gate
}

func newGate() *gate {
	g := &gate{}
	g.changed = sync.NewCond(&g.mu)
	return g
}

func (g *gate) join(cpu *kvm.VCPU) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = append(g.members, cpu)
	g.inside++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.changed.Broadcast()
}

// enter waits until the vCPU may enter the guest; false means never again. A vCPU that waits here has no exit half done, if that was possible.
func (g *gate) enter(cpu *kvm.VCPU) bool {
	if g.isOpen.Load() {
		return true
	}
	// The instruction of the last exit is finished while nobody looks at the vCPU.
	_ = cpu.Complete()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.isOpen.Load() && !g.stopped {
		g.inside--
		g.changed.Broadcast()
		g.changed.Wait()
		g.inside++
	}
	return !g.stopped
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isOpen.Store(!g.stopped)
	g.changed.Broadcast()
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isOpen.Store(false)
	g.kick()
}

func (g *gate) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isOpen.Store(false)
	g.stopped = true
	g.kick()
	g.changed.Broadcast()
}

// kick requires mu.
func (g *gate) kick() {
	for _, cpu := range g.members {
		cpu.Kick()
	}
}

// waitHeld waits until all threads wait at the gate; false means that the gate was stopped or opened instead.
func (g *gate) waitHeld() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.inside > 0 && !g.stopped && !g.isOpen.Load() {
		g.changed.Wait()
	}
	return !g.stopped && !g.isOpen.Load()
}
