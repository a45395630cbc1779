package worker

import (
	"sync"
	"testing"
)

func TestThreadMutexExcludes(t *testing.T) {
	var m threadMutex
	var all sync.WaitGroup
	sum := 0
	const threads, rounds = 8, 20000
	for range threads {
		all.Go(func() {
			for range rounds {
				m.Lock()
				sum++
				m.Unlock()
			}
		})
	}
	all.Wait()
	if sum != threads*rounds {
		t.Fatalf("counted %d, want %d: two held the mutex at once", sum, threads*rounds)
	}
}
