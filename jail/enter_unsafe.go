package jail

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Owner is a user and group.
type Owner struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Limits of a worker. A VM's descriptors are its vCPUs, disks, peers and some more; it writes no file of any size but its disks and logs.
const (
	maxDescriptors = 4096
	rtLimit        = 1       // RLIMIT_RTPRIO: the lowest real-time priority, for what a cut of a VM waits for
	rtTimeMicros   = 2000000 // RLIMIT_RTTIME: a real-time thread that runs for so long without sleeping ends the worker
	niceLimit      = 40      // RLIMIT_NICE counts from 20 - nice: any priority may be taken
)

// Enter jails the process. as is the user to become if the process is root; nil leaves the user as it is. Everything that the process will
// ever open by name must be open. With connect it may still make TCP connections: one whose VM has a card on the built-in switch does.
// Afterwards its threads may be permitted CAP_SYS_NICE, for use on themselves.
func Enter(as *Owner, connect bool) (permitted bool, err error) {
	runtime.LockOSThread() // no_new_privs and the filter are the thread's, from which the kernel copies them to all others
	defer runtime.UnlockOSThread()
	_ = time.Now().Local().String() // reads the time zone, which later it could not
	mayRaise, err := limit()
	if err != nil {
		return false, fmt.Errorf("jail: limits: %w", err)
	}
	if err := closeOnExec(); err != nil {
		return false, fmt.Errorf("jail: descriptors: %w", err)
	}
	if as != nil && os.Geteuid() == 0 {
		if permitted, err = become(*as, !mayRaise && os.Getpid() == 1); err != nil {
			return false, fmt.Errorf("jail: become user %d: %w", as.UID, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return false, fmt.Errorf("jail: no core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return false, fmt.Errorf("jail: no new privileges: %w", err)
	}
	return permitted, install(program(os.Getpid(), connect, permitted))
}

// install gives all threads the filter.
func install(p []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	ret, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return fmt.Errorf("jail: this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): %w", errno)
	case errno != 0:
		return fmt.Errorf("jail: system call filter: %w", errno)
	case ret != 0:
		return fmt.Errorf("jail: system call filter: thread %d cannot take it", ret)
	}
	return nil
}

// limit sets resource limits while the process may still raise some. It tells whether the process may then make real-time threads.
func limit() (mayRaise bool, err error) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return false, err
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return false, err
	}
	files.Max = min(files.Max, maxDescriptors)
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, (*syscall.Rlimit)(&files)); err != nil {
		return false, err
	}
	// Threads that serve pages go ahead of vCPUs, after root's rights are gone too.
	err = unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: rtLimit, Max: rtLimit})
	_ = unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: rtTimeMicros, Max: rtTimeMicros})
	_ = unix.Setrlimit(unix.RLIMIT_NICE, &unix.Rlimit{Cur: niceLimit, Max: niceLimit})
	return err == nil, nil
}

// closeOnExec makes sure that no descriptor outlives an exec, should there ever be one.
func closeOnExec() error {
	err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) { // Linux before 5.11
		return nil
	}
	return err
}

// become gives up root, on all threads. With keepNice all but the permission to take up CAP_SYS_NICE goes: where root may not raise limits (no CAP_SYS_RESOURCE), a
// worker could make no real-time thread otherwise. It reaches the process's own threads only, since keepNice is for one that is alone in its PID namespace.
func become(o Owner, keepNice bool) (kept bool, err error) {
	if keepNice {
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0)
		keepNice = errno == 0 // a program with cgo, such as one with the race detector, cannot
	}
	if err := syscall.Setgroups(nil); err != nil {
		return false, err
	}
	if err := syscall.Setresgid(int(o.GID), int(o.GID), int(o.GID)); err != nil {
		return false, err
	}
	if err := syscall.Setresuid(int(o.UID), int(o.UID), int(o.UID)); err != nil || !keepNice {
		return false, err
	}
	return onlyNice()
}

// onlyNice gives up all capabilities but CAP_SYS_NICE, on all threads, and that too until a thread takes it up. It tells whether there was that one.
func onlyNice() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var held, kept [2]unix.CapUserData // the second has the capabilities from 32 on
	if err := unix.Capget(&header, &held[0]); err != nil {
		return false, err
	}
	kept[0].Permitted = held[0].Permitted & (1 << unix.CAP_SYS_NICE)
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0])), 0)
	if errno != 0 {
		return false, errno
	}
	return kept[0].Permitted != 0, nil
}

// Users that workers get when none is named.
const (
	DefaultUser = "cellvisor"
	nobody      = 65534
)

// FindOwner finds a user by name or number; "" is DefaultUser or, without one, nobody.
func FindOwner(name string) (Owner, error) {
	u, err := user.Lookup(name)
	switch {
	case name == "":
		if u, err = user.Lookup(DefaultUser); err != nil {
			return Owner{UID: nobody, GID: nobody}, nil
		}
	case err != nil:
		if u, err = user.LookupId(name); err != nil {
			return Owner{}, fmt.Errorf("there is no user %q on this machine: `useradd --system --no-create-home %s` makes one", name, name)
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return Owner{UID: uint32(uid), GID: uint32(gid)}, errors.Join(err1, err2)
}

// Supported tells whether this kernel can jail a process; the error says what is missing.
func Supported() error {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return fmt.Errorf("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): %w", errno)
	}
	return nil
}
