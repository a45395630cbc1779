package drill

import (
	"context"
	"time"
)

// Clock is the time in which a drill runs.
type Clock interface {
	Now() time.Time
	// Pause lets time pass: d, or less if changed closes or ctx ends before. An error ends the drill: the world that it runs in is broken.
	Pause(ctx context.Context, d time.Duration, changed <-chan struct{}) error
	// Stepped tells that time passes in Pause and in calls of the cluster only, so that the run looks for itself, on its one goroutine.
	Stepped() bool
}

// wallClock is the time outside.
type wallClock struct{}

func (wallClock) Now() time.Time { return time.Now() }

func (wallClock) Stepped() bool { return false }

// Pause implements Clock.
func (wallClock) Pause(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer.C:
	}
	return nil
}
