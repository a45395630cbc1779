package link

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/link/futex"
)

// BenchmarkLockedThreads is how long a thread waits for a lock that another one holds for 20 us at a time, half of the time.
func BenchmarkLockedThreads(b *testing.B) {
	for name, m := range map[string]sync.Locker{"sync": &sync.Mutex{}, "thread": &futex.Mutex{}} {
		b.Run(name, func(b *testing.B) {
			stop := make(chan struct{})
			var other sync.WaitGroup
			other.Go(func() {
				servePagesThread()
				for {
					select {
					case <-stop:
						return
					default:
					}
					m.Lock()
					busy(20 * time.Microsecond)
					m.Unlock()
					busy(20 * time.Microsecond)
				}
			})
			took := make([]time.Duration, b.N)
			onThread(func() {
				servePagesThread()
				b.ResetTimer()
				for i := range took {
					start := time.Now()
					m.Lock()
					took[i] = time.Since(start)
					m.Unlock()
					busy(7 * time.Microsecond)
				}
				b.StopTimer()
			})
			close(stop)
			other.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[b.N/2].Nanoseconds())/1000, "median-us")
			b.ReportMetric(float64(took[b.N*9/10].Nanoseconds())/1000, "p90-us")
			b.ReportMetric(float64(took[b.N*99/100].Nanoseconds())/1000, "p99-us")
		})
	}
}

func busy(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
	}
}
