package link

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
	"golang.org/x/sys/unix"
)

// The benchmarks run their servers in a second process, the test binary itself, as page traffic does: CELLVISOR_LINK_ROLE says which.
const roleEnv = "CELLVISOR_LINK_ROLE"

// benchProcs is what BENCH_PROCS sets GOMAXPROCS to in both processes; 0 leaves the default.
func benchProcs() int {
	n, _ := strconv.Atoi(os.Getenv("BENCH_PROCS"))
	return n
}

func init() {
	role := os.Getenv(roleEnv)
	if role == "" {
		return
	}
	if n := benchProcs(); n > 0 {
		runtime.GOMAXPROCS(n)
	}
	switch {
	case role == "echo":
		e, err := ListenRawEcho("127.0.0.1")
		if err != nil {
			panic(err)
		}
		fmt.Println(e.Addr())
	case role == "spin":
		fmt.Println("spinning")
		go func() {
			for i := 0; ; i++ {
				_ = i
			}
		}()
	case strings.HasPrefix(role, "pages "):
		servePagesRole(strings.TrimPrefix(role, "pages "))
	}
	// The parent holds the other end of stdin; its end is ours.
	bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

// servePagesRole is part 1 of a VM: it answers each GetShared with the page's contents.
func servePagesRole(peer string) {
	r := newRecorder()
	p, err := ListenPages(testConfig(1, r))
	if err != nil {
		panic(err)
	}
	out := p.NewOutbox()
	contents := make([]byte, ident.PageSize)
	r.pages = func(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error {
		var m wire.PageMsg
		for _, ok := items.Next(&m); ok; _, ok = items.Next(&m) {
			out.Add(&wire.PageMsg{Kind: wire.KindData, Flags: wire.FlagContents, To: from, Page: m.Page}, contents)
		}
		out.Flush(epoch)
		return nil
	}
	fmt.Println(p.Addr())
	if err := p.SetMembers(1, []wire.WorkerMember{{Part: 0, Server: 100, Addr: peer}, {Part: 1, Server: 101, Addr: p.Addr()}}); err != nil {
		panic(err)
	}
}

// startRole runs the test binary in a role and returns its process and the line that it prints.
func startRole(b testing.TB, role string) (*exec.Cmd, string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

// measure runs do b.N times and reports median and 99th percentile.
func measure(b *testing.B, do func()) {
	for range 200 {
		do()
	}
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	for i := range took {
		start := time.Now()
		do()
		took[i] = time.Since(start)
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[b.N/2].Nanoseconds())/1000, "median-us")
	b.ReportMetric(float64(took[b.N*99/100].Nanoseconds())/1000, "p99-us")
	b.ReportMetric(float64(took[b.N*999/1000].Nanoseconds())/1000, "p99.9-us")
	b.ReportMetric(float64(took[b.N-1].Nanoseconds())/1000, "max-us")
}

// onThread runs f on a goroutine, and so a thread, of its own.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func benchRaw(b *testing.B) {
	_, addr := startRole(b, "echo")
	onThread(func() {
		c, err := DialRawEcho(context.Background(), addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		measure(b, func() {
			if err := c.Do(); err != nil {
				b.Error(err)
			}
		})
	})
}

// benchPages measures from the Flush of a request to the handler of the reply. The next request is sent by that handler, on the reader
// thread, as a worker whose vCPU faults would be served: no goroutine switch is part of the figure.
func benchPages(b *testing.B) {
	r := newRecorder()
	p, err := ListenPages(testConfig(0, r))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	_, addr := startRole(b, "pages "+p.Addr())
	out := p.NewOutbox()
	ask := func() {
		out.Add(&wire.PageMsg{Kind: wire.KindGetShared, To: 1, Page: 5}, nil)
		out.Flush(1)
	}
	const warm = 200
	took := make([]time.Duration, 0, b.N+warm)
	done := make(chan struct{})
	var start time.Time
	r.pages = func(from ident.Part, epoch ident.Epoch, items *wire.PageItems) error {
		now := time.Now()
		if took = append(took, now.Sub(start)); len(took) == b.N+warm {
			close(done)
			return nil
		}
		start = time.Now()
		ask()
		return nil
	}
	if err := p.SetMembers(1, []wire.WorkerMember{{Part: 0, Server: 100, Addr: p.Addr()}, {Part: 1, Server: 101, Addr: addr}}); err != nil {
		b.Fatal(err)
	}
	r.waitFor(b, 0, "up", 1)
	b.ResetTimer()
	start = time.Now()
	ask()
	<-done
	b.StopTimer()
	took = took[warm:]
	slices.Sort(took)
	b.ReportMetric(float64(took[b.N/2].Nanoseconds())/1000, "median-us")
	b.ReportMetric(float64(took[b.N*99/100].Nanoseconds())/1000, "p99-us")
	b.ReportMetric(float64(took[b.N*999/1000].Nanoseconds())/1000, "p99.9-us")
	b.ReportMetric(float64(took[b.N-1].Nanoseconds())/1000, "max-us")
}

func withSpinners(n int, f func(b *testing.B)) func(b *testing.B) {
	return func(b *testing.B) {
		if p := benchProcs(); p > 0 {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(p))
		}
		for range n {
			startRole(b, "spin")
		}
		f(b)
	}
}

// busyThreads starts threads that behave to Go's scheduler as vCPU threads do: most of the time in a system call that lasts (KVM_RUN),
// for some microseconds in Go in between. It returns a function that ends them.
func busyThreads(n int) func() {
	var ended sync.WaitGroup
	var stop atomic.Bool
	for range n {
		ended.Go(func() {
			runtime.LockOSThread()
			for !stop.Load() {
				_, _ = unix.Poll(nil, 20)
				for start := time.Now(); time.Since(start) < 5*time.Microsecond; {
				}
			}
		})
	}
	return func() {
		stop.Store(true)
		ended.Wait()
	}
}

// BenchmarkProcs shows what GOMAXPROCS does to a worker with vCPU threads: BENCH_PROCS sets it in both processes.
func BenchmarkProcs(b *testing.B) {
	for _, threads := range []int{0, 4} {
		for _, spinners := range []int{0, 2} {
			b.Run(fmt.Sprintf("procs=%d/threads=%d/spinners=%d", benchProcs(), threads, spinners), withSpinners(spinners, func(b *testing.B) {
				defer busyThreads(threads)()
				benchPages(b)
			}))
		}
	}
}

// BenchmarkRequest is a device request and its answer, from a goroutine locked to its thread, as a vCPU's is.
func BenchmarkRequest(b *testing.B) {
	b.Run("", withSpinners(0, func(b *testing.B) {
		p, err := ListenPages(testConfig(0, newRecorder()))
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		_, addr := startRole(b, "pages "+p.Addr())
		if err := p.SetMembers(1, []wire.WorkerMember{{Part: 0, Server: 100, Addr: p.Addr()}, {Part: 1, Server: 101, Addr: addr}}); err != nil {
			b.Fatal(err)
		}
		onThread(func() {
			runtime.LockOSThread()
			measure(b, func() {
				if _, _, err := p.Request(1, 1, wire.DeviceConsole, []byte("x"), time.Now().Add(testPatience)); err != nil {
					b.Error(err)
				}
			})
		})
	}))
}

// BenchmarkRoundTrip compares a 64-byte request and a page for an answer through the page plane with the raw floor, on a quiet machine
// and with two spinning processes, as spinning vCPUs would be.
func BenchmarkRoundTrip(b *testing.B) {
	for _, spinners := range []int{0, 2} {
		b.Run(fmt.Sprintf("raw/spinners=%d", spinners), withSpinners(spinners, benchRaw))
		b.Run(fmt.Sprintf("pages/spinners=%d", spinners), withSpinners(spinners, benchPages))
	}
}
