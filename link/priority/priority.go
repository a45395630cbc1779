// Package priority puts threads ahead of those that execute guests, so that who decides or serves never waits for who computes.
//
// Nice values do not reach beyond a session where the kernel groups tasks by session (autogroup, sched(7)): workers and serve processes are sessions of
// their own, and a guest's vCPU that spins in one of them is the equal of a thread at nice -20 in another. And even a thread that comes first by its
// weight waits for the running one's slice, which ends at a tick. A thread that works for microseconds at a time can be a real-time thread, and then
// runs at once. Where that is not allowed (RLIMIT_RTPRIO, CAP_SYS_NICE), nice has to do.
package priority

import (
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// niceFirst is the best nice value.
const niceFirst = -20

// First puts the calling thread ahead of all ordinary ones for the rest of its life, but not threads that it starts. The goroutine must be locked to it.
func First() {
	if !realTime(0, unix.SCHED_FLAG_RESET_ON_FORK) {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceFirst)
	}
}

// IsFirst tells whether the calling thread is ahead of all ordinary ones.
func IsFirst() bool {
	a, err := unix.SchedGetAttr(0, 0)
	return err == nil && a.Policy == unix.SCHED_FIFO
}

// Apart runs f on the calling thread as an ordinary one, although First was called for it: what takes long must not keep others off the CPU, and a process whose
// real-time thread does not sleep for too long is killed (RLIMIT_RTTIME).
func Apart(f func()) {
	if IsFirst() {
		Lower(0)
		defer First()
	}
	f()
}

// Raise puts a thread of this process ahead of all ordinary ones until Lower. It tells whether that was allowed.
func Raise(tid int) bool { return realTime(tid, 0) }

// realTime makes a thread a real-time one of the lowest priority, if that is allowed; 0 is the calling thread.
func realTime(tid int, flags uint64) bool {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: flags, Priority: 1}
	if unix.SchedSetAttr(tid, &attr, 0) == nil {
		return true
	}
	return permitted.Load() && takeUp() && unix.SchedSetAttr(tid, &attr, 0) == nil
}

// permitted: see Permit.
var permitted atomic.Bool

// Permit says that the threads of this process, which has no other rights, are permitted CAP_SYS_NICE (capabilities(7)): those that need it take it up.
func Permit() { permitted.Store(true) }

// takeUp makes the calling thread's permission effective.
func takeUp() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Permitted: 1 << unix.CAP_SYS_NICE, Effective: 1 << unix.CAP_SYS_NICE}}
	return unix.Capset(&header, &data[0]) == nil
}

// promptNanos is the slice of the host's scheduler that a guest's thread asks for, the shortest that there is (sched_setattr(2), Linux 6.12). It is no
// less of the CPU, only sooner: of the threads that have a share due, the one whose slice ends first comes first, also ahead of one that is running.
const promptNanos = 100_000

// Lower makes a thread that was raised an ordinary one, at nice 0, that runs soon when it is woken. A thread that has ended needs nothing.
func Lower(tid int) {
	_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Runtime: promptNanos}, 0)
}

// NiceSession gives the session that this process leads a nice value beside other sessions. It does nothing in a session that somebody else leads,
// whose other processes are none of ours, and on kernels that do not group by session.
func NiceSession(nice int) {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
}

// CalmRuntime lets the thread with which the Go runtime watches its own scheduler (sysmon) look at it so late. Left alone it looks every 20 us for a while
// whenever a thread was found that blocks in a system call for 10 ms, takes that thread's place (P) away, and is woken by the next one that comes
// back from such a call. Threads that wait for slices, run guests or wait for pages do nothing but block so: a worker of which little is heard
// would interrupt guests thousands of times a second, and each of its vCPU's turns would begin and end with waking the monitor. The price is that
// goroutines wait longer for a place that is taken by a blocked one: have more of them (GOMAXPROCS) than threads that block. The monitor is
// the first thread that the runtime starts. Where the kernel refuses (CAP_SYS_NICE), everything stays as it is.
func CalmRuntime(late time.Duration) {
	tasks, err := os.Open("/proc/self/task")
	if err != nil {
		return
	}
	defer tasks.Close()
	tids, err := tasks.Readdirnames(2) // in the order in which they were started
	if err == nil && len(tids) == 2 {
		_ = os.WriteFile("/proc/"+tids[1]+"/timerslack_ns", []byte(strconv.FormatInt(late.Nanoseconds(), 10)), 0)
	}
}
