package local

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signal sends a signal to exactly these processes. All of them are opened and identified before the first is signalled, so that they get it
// as nearly at once as can be. One that is gone is no error.
func Signal(sig syscall.Signal, to ...Process) error {
	handles := make([]*handle, 0, len(to))
	for _, p := range to {
		h, err := p.open()
		if err != nil {
			continue
		}
		defer h.close()
		handles = append(handles, h)
	}
	for _, h := range handles {
		if err := h.signal(unix.Signal(sig)); err != nil {
			return fmt.Errorf("signal %v to process %d: %w", sig, h.PID, err)
		}
	}
	return nil
}
