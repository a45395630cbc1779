package worker

import (
	"testing"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// A kick waits for the page that its vCPU waits for, and for no other; one whose vCPU has left the guest since does not wait.
func TestKickWaitsForPage(t *testing.T) {
	v := &vcpu{cpu: &kvm.VCPU{}}
	p := &plane{stalled: stalled{vcpus: []stall{{v: v}}}}
	one := &p.stalled.vcpus[0]
	if p.kick(v); one.kicked {
		t.Error("a kick waits though no page is waited for")
	}
	p.stalled.fault(0, 7)
	if p.kick(v); !one.kicked {
		t.Error("a kick does not wait for the page")
	}
	if p.stalled.come(8); !one.kicked || !one.waits {
		t.Error("another page ends the wait")
	}
	if p.stalled.come(7); one.kicked || one.waits {
		t.Error("the page has come, and the vCPU was not kicked")
	}
	p.stalled.fault(0, 9)
	v.exits.Add(1)
	if p.kick(v); one.kicked {
		t.Error("a kick waits for a page that its vCPU waited for before it left the guest")
	}
	p.stalled.fault(1, 10)
	if one.page == 10 {
		t.Error("the fault of another thread counts as the vCPU's")
	}
}
