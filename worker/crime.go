package worker

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/wire"
)

// optionCrime makes a worker do what its jail forbids once it is in it, for tests. One that is not jailed refuses.
const optionCrime = "crime"

// commitCrime tries the act, and fails the worker with what the kernel said to it. Some acts it does not survive.
func (w *Worker) commitCrime() {
	crime := w.spec.Options[optionCrime]
	if crime == "" {
		return
	}
	if !w.jailed.Load() {
		w.fail(fmt.Errorf("crime %s: this worker is not jailed", crime))
		return
	}
	w.fail(fmt.Errorf("crime %s: %w", crime, w.tryCrime(crime)))
}

func (w *Worker) tryCrime(crime string) error {
	switch crime {
	case "open":
		_, err := os.ReadFile("/etc/passwd")
		return orNothing(err)
	case "open-disk":
		_, err := os.Open(w.spec.DiskDir)
		return orNothing(err)
	case "socket":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		return orNothing(err)
	case "signal":
		return orNothing(unix.Kill(os.Getppid(), 0))
	case "foreign-disk":
		_, err := w.usher.openDisk(w.ctx, wire.WorkerOpenDisk{Disk: "of-another-vm"})
		return orNothing(err)
	case "exec":
		return orNothing(syscall.Exec("/bin/true", []string{"true"}, nil))
	case "ptrace":
		return orNothing(unix.PtraceAttach(os.Getppid()))
	}
	return fmt.Errorf("not known")
}

// orNothing is the error, or one that says that there was none.
func orNothing(err error) error {
	if err == nil {
		return fmt.Errorf("nothing stopped it")
	}
	return err
}
