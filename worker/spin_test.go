package worker

import "testing"

// TestSpins: a vCPU spins if its kernel is about where it was, and nothing moved but what a loop looks at.
func TestSpins(t *testing.T) {
	const kernel = 0xffffffff81ca2704
	at := func(rip uint64, exits uint64) *spinSample {
		s := &spinSample{exits: exits}
		s.regs.RIP, s.regs.RSP, s.regs.RAX = rip, 0xffffc90000000f00, exits
		return s
	}
	before := at(kernel, 7)
	for name, c := range map[string]struct {
		next *spinSample
		want bool
	}{
		"a lock":               {at(kernel, 8), true},
		"around in its loop":   {at(kernel-spinBytes, 8), true},
		"elsewhere":            {at(kernel+spinBytes+1, 8), false},
		"it exited in between": {at(kernel, 9), false},
		"never looked at":      {at(kernel, 7), false},
	} {
		if got := before.spins(c.next); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	copies := at(kernel, 8)
	copies.regs.RCX = 4096
	if before.spins(copies) {
		t.Error("one that copies goes on in its registers")
	}
	if at(0x401000, 7).spins(at(0x401000, 8)) {
		t.Error("a program may loop as it likes")
	}
}
