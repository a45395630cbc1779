package jail

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// The filter is a program for the kernel's classic BPF machine. It sees the number of the system call, the architecture and the arguments'
// values; what a pointer leads to it cannot see.

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16 // eight bytes each, the low half first
)

// x32Bit marks calls of the x32 ABI, which the list does not know.
const x32Bit = 0x40000000

// verdicts of the filter.
const (
	allow  = unix.SECCOMP_RET_ALLOW
	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	kill   = unix.SECCOMP_RET_KILL_PROCESS

	// absent is for clone3, which hides its flags behind a pointer: a C library, if there is one, then falls back on clone.
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// free are the calls that are allowed whatever their arguments. Those of the hot path come first, although kernels since 5.11 look at the list
// only once for each.
var free = []uint32{
	unix.SYS_IOCTL, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX, unix.SYS_MADVISE, unix.SYS_PREAD64, unix.SYS_PWRITE64,
	unix.SYS_PPOLL, unix.SYS_POLL, unix.SYS_EPOLL_PWAIT, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_NANOSLEEP,
	unix.SYS_CLOCK_GETTIME, unix.SYS_SCHED_YIELD, unix.SYS_RECVFROM, unix.SYS_GETTID, unix.SYS_GETPID,
	unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_LSEEK, unix.SYS_FSTAT,
	unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_FADVISE64,
	unix.SYS_FCNTL, unix.SYS_FLOCK, unix.SYS_CLOSE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT2,
	unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME, unix.SYS_TIMERFD_GETTIME,
	unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_MEMBARRIER, unix.SYS_MEMFD_CREATE, unix.SYS_MLOCK, unix.SYS_MUNLOCK,
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_GETATTR, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY,
	unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_GETCPU,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_SETITIMER,
	unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGTIMEDWAIT,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_ARCH_PRCTL, unix.SYS_RESTART_SYSCALL,
	unix.SYS_SET_TID_ADDRESS, unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_SYSINFO, unix.SYS_UNAME, unix.SYS_GETRLIMIT,
	unix.SYS_GETUID, unix.SYS_GETGID, unix.SYS_GETEUID, unix.SYS_GETEGID, unix.SYS_GETPPID,
	unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_RECVMSG, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
}

// condition is what an argument must be.
type condition struct {
	arg   uint32
	mask  uint32 // of the low half; all that the kernel looks at in these arguments is there
	equal uint32
}

// guarded are calls that are allowed if all of the conditions hold.
func guarded(pid int, connect bool) map[uint32][]condition {
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET
	rules := map[uint32][]condition{
		// A send may name an address; that only works on the datagram socket to serve, unless the send itself connects.
		unix.SYS_SENDTO:   {{arg: 3, mask: unix.MSG_FASTOPEN}},
		unix.SYS_MMAP:     {{arg: 2, mask: unix.PROT_EXEC}},
		unix.SYS_MPROTECT: {{arg: 2, mask: unix.PROT_EXEC}},
		// A thread, not a process.
		unix.SYS_CLONE:  {{arg: 0, mask: unix.CLONE_THREAD | unix.CLONE_VM | namespaces, equal: unix.CLONE_THREAD | unix.CLONE_VM}},
		unix.SYS_TGKILL: {{arg: 0, mask: ^uint32(0), equal: uint32(pid)}},
	}
	if connect {
		const inet6Bit, typeMask = unix.AF_INET ^ unix.AF_INET6, 0xf // of the two families, and of the type without its flags
		rules[unix.SYS_SOCKET] = []condition{{arg: 0, mask: ^uint32(inet6Bit), equal: unix.AF_INET}, {arg: 1, mask: typeMask, equal: unix.SOCK_STREAM}}
		rules[unix.SYS_CONNECT] = nil
	}
	return rules
}

// prctls are the options of prctl that are allowed.
var prctls = []uint32{unix.PR_SET_NAME, unix.PR_SET_TIMERSLACK, unix.PR_SET_VMA}

// fatal are calls that no honest worker makes, not even by mistake.
var fatal = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_BPF,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_PIDFD_GETFD,
}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(offset uint32) unix.SockFilter {
	return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

func give(verdict uint32) unix.SockFilter { return statement(unix.BPF_RET|unix.BPF_K, verdict) }

// unless jumps over the next n statements if the loaded value is not k.
func unless(k uint32, n uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: n, K: k}
}

// program is the filter for the process with this PID. Its length is bounded by the lists above, far below the kernel's 4096.
// With capset its threads may take up what they are permitted to; that is never more than the kernel knows they have.
func program(pid int, connect, capset bool) []unix.SockFilter {
	p := []unix.SockFilter{
		load(offsetArch), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.AUDIT_ARCH_X86_64}, give(kill),
		load(offsetNumber), {Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Bit}, give(kill),
	}
	for _, nr := range free {
		p = append(p, unless(nr, 1), give(allow))
	}
	for _, nr := range fatal {
		verdict := uint32(kill)
		if nr == unix.SYS_CAPSET && capset {
			verdict = allow
		}
		p = append(p, unless(nr, 1), give(verdict))
	}
	rules := guarded(pid, connect)
	for _, nr := range slices.Sorted(maps.Keys(rules)) {
		var body []unix.SockFilter
		for _, c := range rules[nr] {
			body = append(body, load(offsetArgs+8*c.arg), statement(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, c.mask),
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: c.equal}, give(refuse))
		}
		body = append(body, give(allow))
		p = append(append(p, unless(nr, uint8(len(body)))), body...)
	}
	body := []unix.SockFilter{load(offsetArgs)}
	for _, option := range prctls {
		body = append(body, unless(option, 1), give(allow))
	}
	body = append(body, give(refuse))
	p = append(append(p, unless(unix.SYS_PRCTL, uint8(len(body)))), body...)
	p = append(p, unless(unix.SYS_CLONE3, 1), give(absent))
	return append(p, give(refuse))
}
