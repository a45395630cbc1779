// Package jail confines a worker process, whose vCPUs run what strangers wrote, to what a worker needs once it is set up. It is floor 4: it
// talks to the kernel and decides nothing else.
//
//	free ──set up: files, KVM, userfaultfd, sockets──▶ Enter ──▶ jailed, for good
//
// After Enter the process, all its threads and whatever they start:
//
//   - has another user's rights if it was root: none over files, processes or devices. What it opened before it keeps. It may make its own threads
//     real-time ones: within RLIMIT_RTPRIO or, where root may not raise that, with CAP_SYS_NICE, which its threads may then take up if it is in a PID namespace of its own;
//   - can gain no privileges by executing a program, and cannot execute one;
//   - may make the system calls of the list in filter.go and no others: it opens no file, makes no socket, connects to nothing, maps nothing
//     executable, starts no process. What an honest worker could try by mistake fails with EPERM. What none does, such as execve or
//     ptrace, kills it, and serve reports that;
//   - leaves no core dump with guest memory in it, and cannot be traced by others of its user.
//
// What it needs from outside, connections to the other parts of its VM, serve makes and hands over.
//
// Invariants: Enter either did all of it, or returns an error and the process must end; no descriptor survives an exec.
package jail
