package vmmtest_test

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/uffd"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// BenchmarkFaultBesideSpinners measures how long a thread waits for a page of a memory of its own while two guest vCPUs of this process spin, for
// several numbers of the runtime's processors (GOMAXPROCS) and with the serving thread at normal or high priority.
func BenchmarkFaultBesideSpinners(b *testing.B) {
	for _, c := range []struct {
		name  string
		procs int
		nice  int
	}{{"procs=2/nice=0", 2, 0}, {"procs=2/nice=-20", 2, -20}, {"procs=16/nice=0", 16, 0}, {"procs=16/nice=-20", 16, -20}} {
		b.Run(c.name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(c.procs))
			spin(b)
			faults(b, c.nice)
		})
	}
}

func spin(b *testing.B) {
	image, err := bad.Open("spin")
	if err != nil {
		b.Fatal(err)
	}
	h := vmmtest.NewHost(b, vmmtest.RequireKVM(b), image, boot.Config{Memory: 8 * ident.MiB, VCPUs: 2})
	h.Go()
	b.Cleanup(h.Stop)
}

// faults lets a guest with one vCPU touch a page that is taken away again after each touch.
func faults(b *testing.B, nice int) {
	image, err := bad.Open("toucher")
	if err != nil {
		b.Fatal(err)
	}
	h := vmmtest.NewHost(b, vmmtest.RequireKVM(b), image, boot.Config{Memory: 16 * ident.MiB, VCPUs: 1})
	fd, err := uffd.Open(h.RAM)
	if err != nil {
		b.Fatal(err)
	}
	const page = 8 << 20 >> ident.PageShift
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice)
		var buf [8]uffd.Fault
		for {
			n, err := fd.ReadFaults(buf[:])
			if err != nil {
				return // and let the thread, with its priority, die
			}
			for _, f := range buf[:n] {
				if f.Kind == uffd.Missing {
					err = fd.MapZero(f.Page, 1, true)
				} else {
					err = fd.Map(f.Page, 1, true)
				}
				if err != nil {
					panic(err)
				}
			}
		}
	}()
	defer func() {
		h.Stop()
		fd.Interrupt()
		<-done
		fd.Close()
	}()
	v := h.VCPUs[0]
	v.Bind()
	defer v.Unbind()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -10)
	defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0) }()
	var times []time.Duration
	for b.Loop() {
		if err := h.RAM.Revoke(page, 1); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for {
			exit, err := v.Run()
			if err != nil || exit.Fatal() {
				b.Fatalf("%v %v", exit, err)
			}
			if exit.Write {
				break
			}
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "median-us")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(times[len(times)-1].Microseconds()), "max-us")
}
