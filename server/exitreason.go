package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cellvisor/cellvisor/wire"
)

// exitReason says how a process ended, with the last line of its log if that was not in good order.
func exitReason(state *os.ProcessState, err error, dir string) string {
	if err == nil {
		return "exit status 0"
	}
	reason := err.Error()
	if state != nil {
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			if ws.Signal() == syscall.SIGSYS {
				return "killed by its jail: it made a system call that no worker makes"
			}
			return fmt.Sprintf("killed by signal %d (%v)", int(ws.Signal()), ws.Signal())
		}
	}
	if line := lastLine(filepath.Join(dir, wire.WorkerLogFile)); line != "" {
		reason += ": " + line
	}
	return reason
}

// lastLine returns the last line of a file that is not empty, cut to a length for people.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tailBytes, lineBytes = 4096, 300
	size, err := f.Seek(0, 2)
	if err != nil {
		return ""
	}
	buf := make([]byte, min(size, tailBytes))
	n, _ := f.ReadAt(buf, size-int64(len(buf)))
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	line := strings.ToValidUTF8(lines[len(lines)-1], "?")
	return line[:min(len(line), lineBytes)]
}
