// Package tap plugs a guest's network card into a TAP interface of the host.
package tap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxFrame is the largest frame that is read: more than a card takes.
const maxFrame = 65536

// downPause lies between two looks at an interface that is down.
const downPause = 100 * time.Millisecond

// Tap is an attached interface.
type Tap struct {
	file *os.File
	done sync.WaitGroup
}

// Open attaches to a TAP interface, which must exist and be the process's to use, or which it may make. deliver takes frames from the host;
// it must not block, and keeps what it gets.
func Open(name string, deliver func([]byte) bool) (*Tap, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("TAP interface %q: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("TAP interface %s: open /dev/net/tun: %w (is the module tun loaded?)", name, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("TAP interface %s: not permitted: make it with `ip tuntap add %s mode tap user NAME` first", name, name)
		}
		return nil, fmt.Errorf("TAP interface %s: %w", name, err)
	}
	t := &Tap{file: os.NewFile(uintptr(fd), "tap "+name)}
	t.done.Add(1)
	go t.read(deliver)
	return t, nil
}

func (t *Tap) read(deliver func([]byte) bool) {
	defer t.done.Done()
	buf := make([]byte, maxFrame)
	for {
		n, err := t.file.Read(buf)
		switch {
		case errors.Is(err, unix.EIO): // the interface is down
			time.Sleep(downPause)
		case err != nil:
			return
		default:
			deliver(append([]byte(nil), buf[:n]...))
		}
	}
}

// Send gives the host a frame; one that it does not take is lost.
func (t *Tap) Send(frame []byte) { _, _ = t.file.Write(frame) }

// Close detaches.
func (t *Tap) Close() error {
	err := t.file.Close()
	t.done.Wait()
	return err
}
