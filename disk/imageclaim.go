package disk

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrOpen says that another process has the copy open.
var ErrOpen = errors.New("another process has the disk open")

// A copy belongs to whoever has it open. The worker of a VM that has just ended may still be carrying its journal out; the next one waits for that, or
// both would write the image. The lock is on the open file, which may be handed over to another process: it ends when the last one closes it.
const (
	claimPatience = 8 * time.Second
	claimAgain    = 5 * time.Millisecond
)

func claim(journal *os.File, patience time.Duration) error {
	for late := time.Now().Add(patience); ; time.Sleep(claimAgain) {
		err := unix.Flock(int(journal.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock %s: %w", journal.Name(), err)
		case time.Now().After(late):
			return fmt.Errorf("%w: it has not ended within %v", ErrOpen, patience)
		}
	}
}
