package uffd

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// The part of <linux/userfaultfd.h> that is used, in the kernel's names and layouts.
const (
	uffdAPI = 0xAA

	ioctlAPI          = 0xc018aa3f // _IOWR(0xAA, 0x3F, struct uffdio_api)
	ioctlRegister     = 0xc020aa00 // _IOWR(0xAA, 0x00, struct uffdio_register)
	ioctlWake         = 0x8010aa02 // _IOR(0xAA, 0x02, struct uffdio_range)
	ioctlCopy         = 0xc028aa03 // _IOWR(0xAA, 0x03, struct uffdio_copy)
	ioctlWriteProtect = 0xc018aa06 // _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
	ioctlContinue     = 0xc020aa07 // _IOWR(0xAA, 0x07, struct uffdio_continue)
	ioctlNew          = 0xaa00     // _IO(0xAA, 0x00), on /dev/userfaultfd

	registerMissing = 1 << 0
	registerWP      = 1 << 1
	registerMinor   = 1 << 2

	copyModeWP     = 1 << 1
	continueModeWP = 1 << 1
	writeProtectWP = 1 << 0

	eventPagefault = 0x12
	flagWrite      = 1 << 0
	flagWP         = 1 << 1
	flagMinor      = 1 << 2

	featurePagefaultFlagWP = 1 << 0
	featureMissingShmem    = 1 << 5
	featureThreadID        = 1 << 8
	featureMinorShmem      = 1 << 10
	featureExactAddress    = 1 << 11
	featureWPShmem         = 1 << 12

	neededFeatures = featurePagefaultFlagWP | featureMissingShmem | featureThreadID | featureMinorShmem | featureExactAddress | featureWPShmem
)

type apiArg struct{ api, features, ioctls uint64 }

type registerArg struct{ start, length, mode, ioctls uint64 }

type rangeArg struct{ start, length uint64 }

type copyArg struct {
	dst, src, length, mode uint64
	copied                 int64
}

type writeProtectArg struct{ start, length, mode uint64 }

type continueArg struct {
	start, length, mode uint64
	mapped              int64
}

// message is struct uffd_msg with its page-fault member.
type message struct {
	event   uint8
	_       [7]uint8
	flags   uint64
	address uint64
	ptid    uint32
	_       uint32
}

const messageSize = 32

var _ [messageSize]byte = [unsafe.Sizeof(message{})]byte{}

// zeros is what MapZero copies from. It is never written.
var zeros [16 * ident.PageSize]byte

// ioctl passes a pointer that the kernel uses only during the call. EINTR is retried: these calls take no time to speak of.
func ioctl(fd int, op uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// newFD asks for a userfaultfd by the system call and, where that is not allowed, by the device.
func newFD() (int, error) {
	// Without UFFD_USER_MODE_ONLY: KVM touches guest pages in kernel mode.
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	switch errno {
	case 0:
		return int(fd), nil
	case unix.ENOSYS:
		return -1, fmt.Errorf("%w: this kernel has no userfaultfd (CONFIG_USERFAULTFD); Linux %s or newer is needed", ErrUnsupported, OldestKernel)
	case unix.EPERM:
	default:
		return -1, fmt.Errorf("open userfaultfd: %w", errno)
	}
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open userfaultfd: %w: run as root, or give access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1", os.ErrPermission)
	}
	defer unix.Close(dev)
	fd, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		return -1, fmt.Errorf("open userfaultfd through /dev/userfaultfd: %w", errno)
	}
	return int(fd), nil
}

// supported asks the kernel which features it has. A handshake is for life, so this one takes an fd of its own.
func supported() (uint64, error) {
	fd, err := newFD()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	arg := apiArg{api: uffdAPI}
	if err := ioctl(fd, ioctlAPI, unsafe.Pointer(&arg)); err != nil {
		return 0, fmt.Errorf("userfaultfd API handshake: %w", err)
	}
	return arg.features, nil
}

// open returns a userfaultfd on which the features are on.
func open(features uint64) (int, error) {
	fd, err := newFD()
	if err != nil {
		return -1, err
	}
	arg := apiArg{api: uffdAPI, features: features}
	err = ioctl(fd, ioctlAPI, unsafe.Pointer(&arg))
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if !errors.Is(err, unix.EINVAL) {
		return -1, fmt.Errorf("userfaultfd API handshake: %w", err)
	}
	have, err := supported()
	if err != nil {
		return -1, err
	}
	return -1, missingError(have)
}

func register(fd int, addr, length uintptr, mode uint64) error {
	arg := registerArg{start: uint64(addr), length: uint64(length), mode: mode}
	return ioctl(fd, ioctlRegister, unsafe.Pointer(&arg))
}

// readMessages reads whole messages without blocking and returns how many.
func readMessages(fd int, buf []message) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)*messageSize))
	if errno != 0 {
		return 0, errno
	}
	return int(n) / messageSize, nil
}

// Continue maps up to n pages whose contents are in the memfd, and wakes who waits for them. It returns how many it mapped, and the errno
// of the page after those: EEXIST if that one is mapped already, EFAULT if it has no contents. Map is the version with the right answers.
func (f *FD) Continue(page ident.PageNo, n uint64, writeProtect bool) (uint64, error) {
	arg := continueArg{start: f.addr(page), length: n << ident.PageShift}
	if writeProtect {
		arg.mode = continueModeWP
	}
	err := ioctl(f.fd, ioctlContinue, unsafe.Pointer(&arg))
	return progress(arg.mapped, err)
}

// copyZero fills and maps up to n pages that have no contents. It returns how many, and the errno of the page after those.
func (f *FD) copyZero(page ident.PageNo, n uint64, writeProtect bool) (uint64, error) {
	arg := copyArg{dst: f.addr(page), src: uint64(uintptr(unsafe.Pointer(&zeros))), length: min(n<<ident.PageShift, uint64(len(zeros)))}
	if writeProtect {
		arg.mode = copyModeWP
	}
	err := ioctl(f.fd, ioctlCopy, unsafe.Pointer(&arg))
	return progress(arg.copied, err)
}

// progress reads the outcome of an ioctl that may stop half-way. EAGAIN says either that (done is positive) or that the mapping was just
// changing: both mean "go on from there", so both are no error.
func progress(done int64, err error) (uint64, error) {
	pages := uint64(max(done, 0)) >> ident.PageShift
	if err == unix.EAGAIN {
		err = nil
	}
	return pages, err
}

// writeProtect retries EAGAIN: the mapping was changing and nothing was done.
func (f *FD) writeProtect(page ident.PageNo, n uint64, on bool) error {
	arg := writeProtectArg{start: f.addr(page), length: n << ident.PageShift}
	if on {
		arg.mode = writeProtectWP
	}
	for {
		if err := ioctl(f.fd, ioctlWriteProtect, unsafe.Pointer(&arg)); err != unix.EAGAIN {
			return err
		}
	}
}

func (f *FD) wake(page ident.PageNo, n uint64) error {
	arg := rangeArg{start: f.addr(page), length: n << ident.PageShift}
	return ioctl(f.fd, ioctlWake, unsafe.Pointer(&arg))
}

// decode turns raw page-fault messages into Faults and returns how many there were.
func (f *FD) decode(out []Fault, raw []message) int {
	n := 0
	for i := range raw {
		m := &raw[i]
		if m.event != eventPagefault {
			continue // no other event was asked for
		}
		off := m.address - uint64(f.base)
		fault := Fault{Page: ident.PageNo(off >> ident.PageShift), TID: m.ptid, Write: m.flags&flagWrite != 0, Offset: uint16(off % ident.PageSize)}
		switch {
		case m.flags&flagWP != 0:
			fault.Kind = WriteProtect
		case m.flags&flagMinor != 0:
			fault.Kind = Minor
		}
		out[n] = fault
		n++
	}
	return n
}
