package uffd_test

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pokeGuest and peekGuest write and read the guest mapping through process_vm_writev and process_vm_readv on this very process: the kernel
// takes the page fault inside a system call, as KVM does.
func pokeGuest(addr uintptr, b []byte) { vmCopy(unix.SYS_PROCESS_VM_WRITEV, addr, b) }

func peekGuest(addr uintptr, b []byte) { vmCopy(unix.SYS_PROCESS_VM_READV, addr, b) }

type remoteIovec struct{ base, length uintptr }

func vmCopy(call uintptr, addr uintptr, b []byte) {
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := remoteIovec{addr, uintptr(len(b))}
	n, _, errno := unix.Syscall6(call, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if errno != 0 || int(n) != len(b) {
		panic(errno)
	}
}
