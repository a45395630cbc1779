package cluster

import (
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// hasher is FNV-1a over numbers and strings: enough to tell states apart, and quick.
type hasher uint64

func newHasher() hasher { return 14695981039346656037 }

func (h *hasher) num(v uint64) {
	for range 8 {
		*h = (*h ^ hasher(v&0xff)) * 1099511628211
		v >>= 8
	}
}

func (h *hasher) str(s string) {
	for i := range len(s) {
		*h = (*h ^ hasher(s[i])) * 1099511628211
	}
	h.num(uint64(len(s)))
}

func (h *hasher) flag(b bool) {
	if b {
		h.num(1)
	} else {
		h.num(0)
	}
}

func hashView(v *cells.View) uint64 {
	h := newHasher()
	h.num(uint64(v.Epoch))
	for _, m := range v.Live {
		h.num(uint64(m.Server))
		h.num(uint64(m.Incarnation))
	}
	return uint64(h)
}

// fingerprint hashes what two servers must agree on.
func fingerprint(st *cells.State) uint64 {
	h := newHasher()
	h.num(st.Applied)
	h.num(st.NextSeq)
	h.num(hashView(&st.View))
	for i := range st.Servers {
		s := &st.Servers[i]
		h.num(uint64(s.ID))
		h.str(string(s.State))
		h.str(s.Process.Boot)
		h.num(uint64(s.Incarnation))
		h.flag(s.Cordoned)
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		h.num(uint64(vm.ID))
		h.str(string(vm.State))
		h.str(vm.Reason)
		h.num(uint64(vm.Epoch))
		for _, p := range vm.Parts {
			h.num(uint64(p.Server))
			h.num(uint64(p.Incarnation))
			h.num(uint64(p.PID))
			h.flag(p.Ready)
			h.flag(p.Gone)
		}
	}
	return uint64(h)
}

// Settled says what is missing until the cluster is as it should be without faults: one leader that all know, every server in the view
// under a lease, every replica equally far.
func (w *World) Settled() error {
	var leader ident.ServerID
	var applied uint64
	for i, s := range w.Servers {
		if !s.Running() {
			return fmt.Errorf("server %d does not run", s.ID)
		}
		st := s.Core.Status(s.Clock())
		if i == 0 {
			leader, applied = st.Leader, s.Core.Peek().Applied
		}
		switch {
		case st.Leader == 0 || st.Leader != leader:
			return fmt.Errorf("server %d has leader %d, another one has %d", s.ID, st.Leader, leader)
		case st.Phase != monitor.PhaseActing:
			return fmt.Errorf("server %d is %s", s.ID, st.Phase)
		case !st.Quorum || s.Clock() >= st.LeaseUntil:
			return fmt.Errorf("server %d has no lease", s.ID)
		case s.Core.Peek().Applied != applied:
			return fmt.Errorf("server %d has applied %d entries, another one %d", s.ID, s.Core.Peek().Applied, applied)
		}
	}
	if n := len(w.Servers[0].Core.Peek().View.Live); n != len(w.Servers) {
		return fmt.Errorf("the view has %d of %d servers", n, len(w.Servers))
	}
	return nil
}

// CalmDown ends all faults: cuts, pauses, crashes. Planned ones that are still to come do not happen.
func (w *World) CalmDown() {
	w.calm = true
	w.HealAll()
	for _, s := range w.Servers {
		s.Resume()
		if s.Core == nil {
			s.Restart()
		}
	}
}

// ExactlyOnce checks the clients' proposals against the events: an agreed one is there once, another at most once.
func (w *World) ExactlyOnce() error {
	count := make(map[string]int)
	events, _ := w.Servers[0].Core.EventsSince(0, cells.MaxEvents)
	for _, e := range events {
		if e.Kind == "op" {
			count[e.Subject]++
		}
	}
	for _, op := range w.ops {
		n := count[op.Subject]
		switch {
		case n > 1:
			return fmt.Errorf("%s was applied %d times", op.Subject, n)
		case n == 0 && op.Answer != nil && op.Answer.Fault == nil:
			return fmt.Errorf("%s was said to be agreed on and is not in the log", op.Subject)
		}
	}
	return nil
}

// Unanswered returns how many proposals at servers that still run the same process have no answer.
func (w *World) Unanswered() int {
	n := 0
	for _, op := range w.ops {
		if op.Answer == nil {
			n++
		}
	}
	return n
}

// Agreed returns how many client proposals were agreed on.
func (w *World) Agreed() int {
	n := 0
	for _, op := range w.ops {
		if op.Answer != nil && op.Answer.Fault == nil {
			n++
		}
	}
	return n
}

// Epoch is the latest epoch that any server applied.
func (w *World) Epoch() ident.Epoch { return w.latest }

// Calm tells whether faults are over.
func (w *World) Calm() bool { return w.calm }
