package worker

import (
	"os"

	"golang.org/x/sys/unix"
)

// pin binds the threads of the vCPUs that have work to one CPU each, the others to the same CPUs in turn; no CPUs: to none.
func (s *slicer) pin(cpus []uint16) {
	s.w.vcpuMu.Lock()
	defer s.w.vcpuMu.Unlock()
	next := 0
	for _, idle := range []bool{false, true} {
		for _, v := range s.w.vcpus {
			if v.idle.Load() != idle {
				continue
			}
			want := 0
			if len(cpus) > 0 {
				want = int(cpus[next%len(cpus)]) + 1
				next++
			}
			s.bind(v, want)
		}
	}
}

func (s *slicer) bind(v *vcpu, want int) {
	tid := int(v.cpu.TID())
	if v.pinned == want || tid == 0 {
		return
	}
	var set unix.CPUSet
	if want > 0 {
		set.Set(want - 1)
	} else if unix.SchedGetaffinity(os.Getpid(), &set) != nil { // the main thread is never bound
		return
	}
	if unix.SchedSetaffinity(tid, &set) == nil {
		v.pinned = want
	}
}
