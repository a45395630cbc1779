package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for ever: PIDs are used again, a PID with a start time is not.
type Process struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // after boot, field 22 of /proc/PID/stat
}

// errGone says that a process does not exist any more.
var errGone = errors.New("process is gone")

// Identify returns the process that has pid now.
func Identify(pid int) (Process, error) {
	st, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTicks: st.startTicks}, nil
}

// Alive tells whether the process exists and has not ended; a zombie has.
func (p Process) Alive() bool {
	st, err := readStat(p.PID)
	return err == nil && st.startTicks == p.StartTicks && st.state != 'Z' && st.state != 'X'
}

type procStat struct {
	state      byte
	startTicks uint64
}

// readStat reads /proc/PID/stat. The command name in it may contain spaces and parentheses: fields count from the last ')'.
func readStat(pid int) (procStat, error) {
	if pid <= 0 {
		return procStat{}, errGone
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, errGone
	}
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return procStat{}, errGone
	}
	fields := strings.Fields(string(raw[end+1:]))
	const stateField, startField = 0, 22 - 3
	if len(fields) <= startField {
		return procStat{}, errGone
	}
	start, err := strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return procStat{}, errGone
	}
	return procStat{state: fields[stateField][0], startTicks: start}, nil
}

// handle is an open pidfd of a process whose identity was checked after it was opened.
type handle struct {
	Process
	fd int
}

func (p Process) open() (*handle, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil, errGone
	}
	if !p.Alive() {
		unix.Close(fd)
		return nil, errGone
	}
	return &handle{Process: p, fd: fd}, nil
}

func (h *handle) close() { unix.Close(h.fd) }

// signal sends a signal to exactly this process; one that is gone is no error.
func (h *handle) signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(h.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait returns true when the process has ended, false when the deadline passed first.
func (h *handle) wait(deadline time.Time) bool {
	for {
		left := time.Until(deadline)
		if left < 0 {
			left = 0
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n > 0 {
			return true
		}
		if !h.Alive() {
			return true
		}
		if err != nil || time.Now().After(deadline) {
			return false
		}
	}
}

// Kind says what a process of a cluster is.
type Kind string

// Kinds of processes.
const (
	KindServe  Kind = "serve"
	KindWorker Kind = "worker"
)

// Member is a running process that belongs to a cluster.
type Member struct {
	Process
	Kind   Kind
	Server string // the server it belongs to
	Path   string // the configuration file or worker directory that its command line names
}

// Find returns the running processes whose command line names a file below dir, by PID. It reads /proc, so it finds what no file tells
// of: a worker whose serve was killed, or a server that was started by hand.
func Find(dir string) ([]Member, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out []Member
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := Identify(pid)
		if err != nil || !p.Alive() {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		if m, ok := memberOf(dir, strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")); ok {
			m.Process = p
			out = append(out, m)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].PID < out[j].PID })
	return out, nil
}

// memberOf reads a command line: `… serve --config DIR/a-1.hcl` or `… worker --dir DIR/a-1/workers/7-3`.
func memberOf(dir string, argv []string) (Member, bool) {
	if len(argv) < 3 {
		return Member{}, false
	}
	var m Member
	var flag string
	switch Kind(argv[1]) {
	case KindServe:
		m.Kind, flag = KindServe, "--config"
	case KindWorker:
		m.Kind, flag = KindWorker, "--dir"
	default:
		return Member{}, false
	}
	for i, a := range argv[2:] {
		if a == flag && i+3 < len(argv) {
			m.Path = argv[i+3]
		} else if v, ok := strings.CutPrefix(a, flag+"="); ok {
			m.Path = v
		}
	}
	rel, err := filepath.Rel(dir, m.Path)
	if err != nil || !filepath.IsAbs(m.Path) || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return Member{}, false
	}
	m.Server, _, _ = strings.Cut(rel, "/")
	m.Server = strings.TrimSuffix(m.Server, ".hcl")
	return m, true
}
