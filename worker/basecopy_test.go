package worker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A full copy rests for as long as it works, so that half of what it takes is left to the guest, whatever a chunk costs; a rest is bounded, and ends with
// the protection or the VM.
func TestFullCopiesRestForAsLongAsTheyWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := &replicas{w: &Worker{ctx: ctx}}
		var worked, rested time.Duration
		for i := range 200 {
			chunk := time.Duration(i%19+1) * time.Millisecond // slower and slower, as on a busy machine
			began := time.Now()
			<-time.After(chunk)
			ended := time.Now()
			if !r.ease(nil, ended.Sub(began)) {
				t.Fatal("a rest ended the copy")
			}
			worked, rested = worked+ended.Sub(began), rested+time.Since(ended)
		}
		if worked != rested {
			t.Errorf("worked for %v, rested for %v", worked, rested)
		}
		began := time.Now()
		if !r.ease(nil, time.Hour) || time.Since(began) != easeMost {
			t.Errorf("after a chunk that waited for an hour it rested for %v, want %v", time.Since(began), easeMost)
		}
		change := make(chan struct{})
		time.AfterFunc(time.Millisecond, func() { close(change) })
		if began = time.Now(); r.ease(change, time.Second) || time.Since(began) != time.Millisecond {
			t.Errorf("after the protection has changed it rested for %v more", time.Since(began))
		}
		cancel()
		if r.ease(nil, time.Second) {
			t.Error("the copy goes on after the VM has ended")
		}
	})
}
