package bench

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// startInTerminal starts a command in a new pseudo-terminal of this size, and returns the side of it that a person would have.
func startInTerminal(cmd *exec.Cmd, columns, rows uint16) (person *os.File, err error) {
	person, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("a pseudo-terminal: %w", err)
	}
	defer func() {
		if err != nil {
			person.Close()
		}
	}()
	// Control, unlike Fd, leaves the file with the poller, so that reads end when it is closed.
	raw, err := person.SyscallConn()
	if err != nil {
		return nil, err
	}
	var number int
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		if ioctl = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctl != nil {
			return
		}
		if number, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); ioctl != nil {
			return
		}
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err == nil {
		err = ioctl
	}
	if err != nil {
		return nil, fmt.Errorf("a pseudo-terminal: %w", err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return person, cmd.Start()
}
