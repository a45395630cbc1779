package worker

import "github.com/cellvisor/cellvisor/ident"

// stalled knows which vCPUs of a part wait for a page, with which a kick can wait as well. One is not only useless before the page has come: while a
// signal is pending, a kernel that reads guest memory for a vCPU (KVM does to emulate an instruction) asks for the page anew as fast as it can. All
// fields are protected by plane.mu.
type stalled struct {
	vcpus []stall
}

type stall struct {
	v      *vcpu
	page   ident.PageNo
	run    uint64 // how often it had left the guest when it faulted: once it has again, it does not wait any more
	waits  bool
	kicked bool // it is to be kicked when the page has come
}

func (s *stalled) add(v *vcpu) { s.vcpus = append(s.vcpus, stall{v: v}) }

// of returns what a vCPU waits for, nil if it does not.
func (s *stalled) of(v *vcpu) *stall {
	for i := range s.vcpus {
		if w := &s.vcpus[i]; w.v == v && w.waits && w.run == v.exits.Load() {
			return w
		}
	}
	return nil
}

// fault notes that a thread, which may be no vCPU, waits for a page.
func (s *stalled) fault(tid uint32, page ident.PageNo) {
	for i := range s.vcpus {
		if w := &s.vcpus[i]; uint32(max(0, w.v.cpu.TID())) == tid {
			w.page, w.run, w.waits = page, w.v.exits.Load(), true
			return
		}
	}
}

// come kicks the vCPUs that waited for a page and are to be kicked.
func (s *stalled) come(page ident.PageNo) {
	for i := range s.vcpus {
		w := &s.vcpus[i]
		if !w.waits || w.page != page {
			continue
		}
		if w.waits = false; w.kicked {
			w.kicked = false
			w.v.cpu.Kick()
		}
	}
}

// kick throws a vCPU out of the guest: at once, or if it waits for a page, when that has come.
func (p *plane) kick(v *vcpu) {
	p.mu.Lock()
	w := p.stalled.of(v)
	if w != nil {
		w.kicked = true
	}
	p.mu.Unlock()
	if w == nil {
		v.cpu.Kick()
	}
}

// waits tells whether a vCPU waits for a page.
func (p *plane) waits(v *vcpu) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stalled.of(v) != nil
}
