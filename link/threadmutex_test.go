package link

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestThreadMutexExcludes(t *testing.T) {
	var m ThreadMutex
	var wait sync.WaitGroup
	count := 0
	for range 8 {
		wait.Go(func() {
			runtime.LockOSThread()
			for i := range 2000 {
				m.Lock()
				count++
				if i%100 == 0 {
					runtime.Gosched() // others find it locked for long
				}
				m.Unlock()
			}
		})
	}
	wait.Wait()
	if count != 8*2000 {
		t.Errorf("%d of %d", count, 8*2000)
	}
	defer func() {
		if recover() == nil {
			t.Error("unlocked twice")
		}
	}()
	m.Unlock()
}

// BenchmarkLockedThreads is how long a thread waits for a lock that another one holds for 20 us at a time, half of the time.
func BenchmarkLockedThreads(b *testing.B) {
	for name, m := range map[string]sync.Locker{"sync": &sync.Mutex{}, "thread": &ThreadMutex{}} {
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
