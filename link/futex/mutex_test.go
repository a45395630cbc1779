package futex

import (
	"runtime"
	"sync"
	"testing"
)

func TestMutexExcludes(t *testing.T) {
	var m Mutex
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
