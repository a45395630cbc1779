package local

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KillCell kills all processes of a cell at once with SIGKILL, servers and workers: what a power failure of the cell would do. It returns
// what it killed, and when the first signal was sent.
func KillCell(dir, cell string) ([]Member, time.Time, error) {
	members, err := Find(dir)
	if err != nil {
		return nil, time.Time{}, err
	}
	var killed []Member
	var handles []*handle
	for _, m := range members {
		if !strings.HasPrefix(m.Server, cell+"-") {
			continue
		}
		h, err := m.Process.open()
		if err != nil {
			continue
		}
		defer h.close()
		killed, handles = append(killed, m), append(handles, h)
	}
	if len(handles) == 0 {
		return nil, time.Time{}, fmt.Errorf("no process of cell %q runs in %s", cell, dir)
	}
	start := time.Now()
	for _, h := range handles {
		if err := h.signal(unix.SIGKILL); err != nil {
			return killed, start, fmt.Errorf("killing process %d: %w", h.PID, err)
		}
	}
	return killed, start, nil
}
