package gang

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// How long what must not be may last: messages take their time, and clocks are known to within half a round trip.
const (
	overlapAtMost = 3 * ident.Millisecond
	splitAtMost   = 8 * ident.Millisecond
	startUp       = 300 * ident.Millisecond // until everybody follows a conductor, and knows its clock
	silentAtMost  = gang.SliceLease + 100*ident.Millisecond
)

// sample looks at everything, again and again.
func (w *world) sample() {
	if err := w.look(); err != nil {
		w.Fail(err)
		return
	}
	w.At(w.Now()+sampleTime, w.sample)
}

func (w *world) look() error {
	calm := w.Now() > w.calm+startUp && w.Now() > startUp
	for _, s := range w.servers {
		if s.dead {
			continue
		}
		if err := w.lookAtSlots(s, calm); err != nil {
			return err
		}
		if err := w.lookAtSilence(s); err != nil {
			return err
		}
	}
	for _, v := range w.vms {
		if err := w.lookAtVM(v, calm); err != nil {
			return err
		}
	}
	return nil
}

// lookAtSlots finds slots that two parts use, and gangs that run without slots for all their vCPUs.
func (w *world) lookAtSlots(s *server, calm bool) error {
	var used []uint16
	for _, v := range w.vms {
		k := s.workers[v.ID]
		if k == nil {
			continue
		}
		if k.mode != wire.SliceRun {
			k.overlaps = -1
			continue
		}
		shared := w.steady && len(k.slots) < k.vcpus || slices.ContainsFunc(k.slots, func(x uint16) bool { return slices.Contains(used, x) })
		used = append(used, k.slots...)
		switch {
		case !shared || !calm:
			k.overlaps = -1
		case k.overlaps < 0:
			k.overlaps = w.Now()
		case w.Now()-k.overlaps > overlapAtMost:
			return fmt.Errorf("server %d: VM %d has lacked slots, or shared them with another one, for %d us", s.id, v.ID, w.Now()-k.overlaps)
		}
	}
	return nil
}

// lookAtSilence finds parts that are held for a conductor that has stopped.
func (w *world) lookAtSilence(s *server) error {
	if s.pausing || len(s.workers) == 0 {
		return nil
	}
	for _, o := range w.servers {
		if !o.pausing || o.dead || w.Now()-max(o.paused, s.resumed) < silentAtMost || o.id > s.id {
			continue
		}
		for _, v := range w.vms { // o conducts, if it is the lowest of the VM's servers and no other VM connects it to a lower one
			k := s.workers[v.ID]
			if k == nil || k.mode != wire.SliceHold || len(v.Parts) != len(w.servers) || o.id != 1 {
				continue
			}
			return fmt.Errorf("server %d still holds VM %d, %d us after its conductor stopped", s.id, v.ID, w.Now()-o.paused)
		}
	}
	return nil
}

// lookAtVM follows whether a VM runs, wholly or in part, and how long it waits.
func (w *world) lookAtVM(v *vm, calm bool) error {
	runs, held, work := 0, 0, 0
	for _, p := range v.Parts {
		k := w.servers[p.Server-1].workers[v.ID]
		work += k.busy
		if k.mode == wire.SliceHold {
			held++
		} else {
			runs++
		}
	}
	if held == 0 {
		v.ran += sampleTime
	}
	switch {
	case !calm || held == 0 || runs == 0:
		v.splits = -1
	case v.splits < 0:
		v.splits = w.Now()
	case w.Now()-v.splits > splitAtMost:
		return fmt.Errorf("VM %d has run on %d of its %d servers only for %d us", v.ID, runs, len(v.Parts), w.Now()-v.splits)
	}
	switch {
	case !calm || work == 0 || held == 0:
		v.waits = -1
	case v.waits < 0:
		v.waits = w.Now()
	case w.Now()-v.waits > w.waitAtMost(v):
		return fmt.Errorf("VM %d has waited for %d us; its weight %d explains %d", v.ID, w.Now()-v.waits, v.Weight, w.waitAtMost(v))
	}
	return nil
}

// waitAtMost is what weights explain: a VM that filled holes is some slices ahead, and while it waits for the others to come up, each of them may run
// for its weight's part.
func (w *world) waitAtMost(v *vm) ident.Micros {
	sum := 0
	for _, o := range w.vms {
		sum += o.Weight
	}
	return ident.Micros(8*(sum/v.Weight+1)+len(w.vms)) * gang.MaxSlice
}

// checkShares compares what VMs that exclude each other got with their weights.
func (w *world) checkShares() error {
	if !w.fair {
		return nil
	}
	sum := 0
	for _, v := range w.vms {
		sum += v.Weight
	}
	for _, v := range w.vms {
		due := (runTime - startUp) * ident.Micros(v.Weight) / ident.Micros(sum)
		off := v.ran - due
		if limit := due/20 + startUp + 2*gang.MaxSlice; off > limit || -off > limit {
			return fmt.Errorf("VM %d of weight %d of %d ran %d us, due are %d", v.ID, v.Weight, sum, v.ran, due)
		}
	}
	return nil
}
