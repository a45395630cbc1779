package feed

import (
	"context"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// silence is how long a stream that promises a message a second may be quiet before its server is taken for stopped.
const silence = 3 * time.Second

// eventLog keeps the newest events of one server. Sequence numbers are a server's own, so the log begins anew at another server.
type eventLog struct {
	server string
	list   []*api.Event
	next   uint64
}

// add appends events that are new. Published slices stay valid: the backing array only ever grows beyond them or is left behind.
func (l *eventLog) add(events []*api.Event) (added bool) {
	for _, e := range events {
		if e.GetSeq() < l.next {
			continue
		}
		l.next = e.GetSeq() + 1
		l.list = append(l.list, e)
		added = true
	}
	if len(l.list) > 2*MaxEvents {
		kept := make([]*api.Event, MaxEvents, 2*MaxEvents+64)
		copy(kept, l.list[len(l.list)-MaxEvents:])
		l.list = kept
	}
	return added
}

// published returns the newest events.
func (l *eventLog) published() []*api.Event {
	n := len(l.list)
	return l.list[max(0, n-MaxEvents):n:n]
}

// restart begins the log anew if server is another one.
func (l *eventLog) restart(server string) {
	if l.server != server {
		*l = eventLog{server: server}
	}
}

// watchdog cancels a context when nothing was heard for too long.
type watchdog struct {
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelFunc
}

func newWatchdog(ctx context.Context, after time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, &watchdog{timer: time.AfterFunc(after, cancel), after: after, cancel: cancel}
}

func (w *watchdog) heard() { w.timer.Reset(w.after) }

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel()
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
