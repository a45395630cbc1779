package uffd

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

var featureNames = []struct {
	bit  uint64
	name string
}{
	{featurePagefaultFlagWP, "PAGEFAULT_FLAG_WP"},
	{featureMissingShmem, "MISSING_SHMEM"},
	{featureThreadID, "THREAD_ID"},
	{featureMinorShmem, "MINOR_SHMEM"},
	{featureExactAddress, "EXACT_ADDRESS"},
	{featureWPShmem, "WP_HUGETLBFS_SHMEM"},
}

// missingError names the needed features that have does not hold.
func missingError(have uint64) error {
	var names []string
	for _, f := range featureNames {
		if have&f.bit == 0 {
			names = append(names, f.name)
		}
	}
	return fmt.Errorf("%w: %s; Linux %s or newer is needed", ErrUnsupported, strings.Join(names, ", "), OldestKernel)
}

// onePage is a page of memory at an address.
type onePage uintptr

// Watchable implements Memory.
func (p onePage) Watchable() (uintptr, ident.Bytes, error) { return uintptr(p), ident.PageSize, nil }

// Check tells whether this host's userfaultfd has everything that Open and Map need, by trying it on one page. CONTINUE with write
// protection has no feature bit of its own, so only the trial can tell.
func Check() error {
	have, err := supported()
	if err != nil {
		return err
	}
	if have&neededFeatures != neededFeatures {
		return missingError(have)
	}
	memfd, err := unix.MemfdCreate("cellvisor-check", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(memfd)
	if err := unix.Fallocate(memfd, 0, 0, ident.PageSize); err != nil {
		return fmt.Errorf("allocate one page of a memfd: %w", err)
	}
	addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, ident.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, uintptr(memfd), 0)
	if errno != 0 {
		return fmt.Errorf("map one page of a memfd: %w", errno)
	}
	defer func() { _, _, _ = unix.Syscall(unix.SYS_MUNMAP, addr, ident.PageSize, 0) }()
	f, err := Open(onePage(addr))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Continue(0, 1, true); err != nil {
		return fmt.Errorf("%w: UFFDIO_CONTINUE with write protection (%w); Linux %s or newer is needed", ErrUnsupported, err, OldestKernel)
	}
	return nil
}
