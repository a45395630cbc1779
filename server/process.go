package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/priority"
)

// errGone says that no such process runs any more.
var errGone = errors.New("process is gone")

// process is a handle on one run of one process of this host. The pidfd in it never means another process, unlike a PID.
type process struct {
	pid   int
	start uint64 // field 22 of /proc/PID/stat
	file  *os.File
}

// openProcess takes a handle on the process with this PID and start time (0: whatever its start time is). The error is errGone if the
// PID is free or belongs to a process that started at another time.
func openProcess(pid int, start uint64) (*process, error) {
	if pid <= 0 {
		return nil, errGone
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	p := &process{pid: pid, file: os.NewFile(uintptr(fd), "pidfd")}
	// The order matters: the handle first, then its start time. A PID that was reused in between shows another start time.
	if p.start, err = startTime(pid); err != nil || start != 0 && p.start != start {
		p.Close()
		if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, errGone
		}
		return nil, err
	}
	return p, nil
}

// gone tells whether the process has ended with all its threads. A zombie has; a process that is stopped has not.
func (p *process) gone() bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	_ = raw.Control(func(fd uintptr) { ended = readable(fd) })
	return ended
}

// wait returns nil when the process has ended, or the context's error.
func (p *process) wait(ctx context.Context) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := p.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := raw.Read(readable); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// signal sends a signal; a process that has ended is no error.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal %v to process %d: %w", sig, p.pid, serr)
	}
	return nil
}

// Close gives the handle up and ends a wait.
func (p *process) Close() { _ = p.file.Close() }

// readable tells whether poll reports the descriptor as readable: for a pidfd, that the whole thread group has exited.
func readable(fd uintptr) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(set, 0)
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

// startTime reads when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may hold anything: go on after the last one.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// workerCommand is the argument that marks a worker process; its directory follows.
var workerCommand = []string{"worker", "--dir"}

// workerProcess is a worker process as found in /proc.
type workerProcess struct {
	pid int
	dir string
}

// findWorkers lists all worker processes on this host, whoever started them. It goes by the command line, because a worker that has only
// just been started has no socket yet, and one whose directory was removed has none any more.
func findWorkers() ([]workerProcess, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []workerProcess
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile("/proc/" + n.Name() + "/cmdline")
		if err != nil {
			continue // it ended meanwhile, or is none of ours
		}
		args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		if len(args) >= 4 && args[1] == workerCommand[0] && args[2] == workerCommand[1] {
			found = append(found, workerProcess{pid: pid, dir: args[3]})
		}
	}
	return found, nil
}

// hostID is equal for servers that see each other's processes: same boot of the same kernel, same PID namespace.
func hostID() string {
	boot, err1 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, err2 := os.Readlink("/proc/self/ns/pid")
	if err1 != nil || err2 != nil {
		return "" // equal to nobody's: no proof of death then, only leases
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(string(boot)) + ns))
	return hex.EncodeToString(sum[:8])
}

// bootMicros reads CLOCK_BOOTTIME, the clock of leases: serve and its workers share it, and it counts the time of a suspended machine.
func bootMicros() ident.Micros {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("server: CLOCK_BOOTTIME: " + err.Error()) // exists on every supported kernel
	}
	return ident.Micros(ts.Sec)*ident.Second + ident.Micros(ts.Nsec/1000)
}

// beNice sets the priority of all threads of this process, and of its session. Linux keeps it by thread; threads started later inherit it.
func beNice(nice int) error {
	priority.NiceSession(nice)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority %d: %w", nice, err)
		}
	}
	return nil
}

// settleRuntime fits the Go runtime to a process that has a host full of spinning vCPUs beside it, and threads that block: a goroutine finds a place to run
// although others are in system calls, and the runtime does not look after these all the time. What it returns must be kept.
//
// That is a ballast, which makes the heap seem larger than it is, so that it is collected every some seconds and not every second: a collection takes all
// CPUs for milliseconds, ahead of guests, and of a gang that begins on several servers just then a part begins late. The ballast is never touched, so it
// takes no memory; garbage may take as much.
func settleRuntime() (ballast []byte) {
	runtime.GOMAXPROCS(runtime.NumCPU() + 8)
	priority.CalmRuntime(10 * time.Millisecond)
	return make([]byte, ballastBytes)
}

const ballastBytes = 32 << 20
