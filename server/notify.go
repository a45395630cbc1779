package server

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/cellvisor/cellvisor/monitor"
)

// What systemd wants to hear (sd_notify(3)): that the server is up, that it ends, and, with a watchdog, that its loop still turns. Workers outlive a
// serve that the watchdog ends; its successor adopts them.

// notify tells the service manager, if there is one.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // it does not listen any more: nothing hangs on it
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}

// watchdogInterval is how often the service manager wants a sign of life; 0 if it does not.
func watchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	micros, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros <= 0 {
		return 0
	}
	return time.Duration(micros) * time.Microsecond
}

// keepAlive pings the watchdog as long as the loop turns: a wedged loop means a wedged server, whatever its other threads do.
func (s *Server) keepAlive(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	last := s.turns.Load()
	for {
		select {
		case s.inbox <- monitor.Tick{}: // an idle loop turns too
		default: // it has work
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if now := s.turns.Load(); now != last {
			last = now
			notify("WATCHDOG=1")
		}
	}
}
