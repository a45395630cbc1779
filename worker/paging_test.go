package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
	"github.com/cellvisor/cellvisor/wire"
)

// startSmall starts a VM whose parts may each hold no more than limit, and have so much room in their paging files.
func startSmall(t *testing.T, builtin, args string, memory, limit, file ident.Bytes, vcpus ...int) *testVM {
	t.Helper()
	vmmtest.RequireKVM(t)
	total := 0
	for _, n := range vcpus {
		total += n
	}
	v := &testVM{t: t}
	next := 0
	for i, n := range vcpus {
		spec := testSpec(i, total, builtin, args, memory)
		spec.Memory = &wire.WorkerMemory{LimitBytes: limit, FileBytes: file}
		for range n {
			spec.LocalVCPUs = append(spec.LocalVCPUs, ident.VCPU(next))
			next++
		}
		v.parts = append(v.parts, startPart(t, spec))
	}
	t.Cleanup(v.stop)
	members := wire.WorkerMembers{Epoch: 1, Fresh: true}
	for i := range v.parts {
		members.Members = append(members.Members, v.member(i))
	}
	v.send(wire.ToWorker{Lease: &wire.WorkerLease{UntilBootMicros: bootMicros() + 600*ident.Second}})
	v.send(wire.ToWorker{Members: &members})
	return v
}

// lastStats returns what a part has said last, once it has said something that satisfies.
func (v *testVM) awaitStats(part int, within time.Duration, satisfies func(*wire.WorkerStats) bool) *wire.WorkerStats {
	v.t.Helper()
	deadline := time.After(within)
	var last wire.WorkerStats
	for {
		select {
		case last = <-v.parts[part].stats:
			if satisfies(&last) {
				return &last
			}
		case <-deadline:
			v.t.Fatalf("part %d says %+v, paging %+v\n%s", part, last, last.Paging, v.parts[part].log())
		}
	}
}

// A guest that walks over several times what its parts may hold is right, word for word, and they never hold more.
func TestWalksOverMoreThanTheLimit(t *testing.T) {
	for _, c := range []struct {
		shape []int
		limit ident.Bytes
	}{{[]int{1}, 4 * ident.MiB}, {[]int{2}, 3 * ident.MiB}, {[]int{1, 1}, 3 * ident.MiB}, {[]int{2, 1, 1}, 2 * ident.MiB}} {
		v := startSmall(t, "walk", "8 3", 16*ident.MiB, c.limit, 16*ident.MiB, c.shape...)
		over := make(chan ident.Bytes, 1)
		go func() {
			for s := range v.parts[0].stats {
				if s.ResidentBytes > c.limit {
					select {
					case over <- s.ResidentBytes:
					default:
					}
				}
			}
		}()
		v.mustExit(2 * time.Minute)
		if text := v.console(); strings.Count(text, "right, checksum") != 3 {
			t.Errorf("%v:\n%s", c.shape, text)
		}
		select {
		case got := <-over:
			t.Errorf("%v: a part held %v, its limit is %v", c.shape, got, c.limit)
		default:
		}
	}
}

// Atomic operations, litmus tests and counters are as exact as ever while everything around them is paged.
func TestPagingKeepsMemoryCoherent(t *testing.T) {
	v := startSmall(t, "lock", "3000", 16*ident.MiB, ident.MiB, 16*ident.MiB, 2, 1)
	v.mustExit(2 * time.Minute)
	if text := v.console(); !strings.Contains(text, "spinlock sum 9000, exact") {
		t.Errorf("console:\n%s", text)
	}
}

// A limit that falls while the guest runs is kept after that, and one that rises lets pages back in.
func TestLimitsChangeWhileTheGuestRuns(t *testing.T) {
	v := startSmall(t, "walk", "12 1000000", 24*ident.MiB, 24*ident.MiB, 16*ident.MiB, 1)
	v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.ResidentBytes > 12*ident.MiB })
	for _, limit := range []ident.Bytes{4 * ident.MiB, 9 * ident.MiB, 2 * ident.MiB} {
		v.sendTo(0, wire.ToWorker{Memory: &wire.WorkerMemory{LimitBytes: limit, FileBytes: 16 * ident.MiB}})
		v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool {
			return s.Paging.LimitBytes == limit && s.ResidentBytes <= limit && s.ResidentBytes > limit*3/4
		})
	}
	s := v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.Paging.In > 1000 })
	if s.Paging.Error != "" || s.Paging.Out < 1000 {
		t.Errorf("paging %+v", s.Paging)
	}
}

// Where there is no room in the file the guest goes on above its limit, and its part says so; when there is room it obeys again.
func TestAFullPagingFileIsSaid(t *testing.T) {
	v := startSmall(t, "walk", "12 1000000", 24*ident.MiB, 4*ident.MiB, ident.MiB, 1)
	s := v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.ResidentBytes > 8*ident.MiB && s.Paging.Error != "" })
	if !strings.Contains(s.Paging.Error, "full") {
		t.Errorf("error %q", s.Paging.Error)
	}
	v.sendTo(0, wire.ToWorker{Memory: &wire.WorkerMemory{LimitBytes: 4 * ident.MiB, FileBytes: 16 * ident.MiB}})
	v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.ResidentBytes <= 4*ident.MiB && s.Paging.Error == "" })
	if e := v.parts[0].ended; len(e) > 0 {
		t.Errorf("it ended: %+v", <-e)
	}
}

// What was paged out in one boot is not there in the next.
func TestPagedMemoryIsZeroAfterAReset(t *testing.T) {
	v := startSmall(t, "walk", "6 1000000", 16*ident.MiB, 2*ident.MiB, 16*ident.MiB, 1, 1)
	for n := range ident.Epoch(4) {
		seen := v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.Paging.Out > 0 }).Paging.Out
		v.awaitStats(0, time.Minute, func(s *wire.WorkerStats) bool { return s.Paging.Out > seen+200 })
		v.boot(2+n, 0)
	}
	v.awaitStats(0, time.Minute, func(*wire.WorkerStats) bool { return strings.Count(v.console(), "walk: ") >= 10 })
	if e := v.parts[0].ended; len(e) > 0 {
		t.Errorf("it ended: %+v\n%s", <-e, v.console())
	}
}
