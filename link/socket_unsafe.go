package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSocket is a connected stream socket outside Go's network poller: its reader blocks in read(2) on a thread of its own. A socket in
// the poller costs an epoll wake-up and a trip through the scheduler's queues for each message, and that trip runs at the priority of
// whichever thread happens to make it, not at the reader's.
//
// The descriptor is closed by close alone, when no thread can use it any more; shutdown only makes all calls on it return.
type rawSocket struct {
	fd int
}

// rawSendLimit is the most that one send passes to the kernel without telling Go's scheduler. Such a send cannot lose its P to the
// scheduler's monitor, but it holds up a stop of the world for as long as it takes.
const rawSendLimit = 64 << 10

// detach takes the descriptor out of a connection of package net, which it closes.
func detach(conn net.Conn) (*rawSocket, error) {
	defer conn.Close()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("link: %T has no descriptor", conn)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("link: detach %s: %w", conn.RemoteAddr(), err)
	}
	fd, dupErr := -1, error(nil)
	if err := rc.Control(func(u uintptr) { fd, dupErr = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, fmt.Errorf("link: detach %s: %w", conn.RemoteAddr(), err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("link: detach %s: %w", conn.RemoteAddr(), dupErr)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("link: detach %s: %w", conn.RemoteAddr(), err)
	}
	return &rawSocket{fd: fd}, nil
}

// read blocks until there is something to read, the stream ends (io.EOF) or shutdown.
func (s *rawSocket) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case n > 0:
			return n, nil
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		default:
			return 0, io.EOF
		}
	}
}

// trySend passes to the kernel what fits into the socket's buffer right now, perhaps nothing. It never blocks.
func (s *rawSocket) trySend(buf []byte) (int, error) {
	sent := 0
	for sent < len(buf) {
		var n uintptr
		var errno syscall.Errno
		rest := buf[sent:]
		if len(rest) <= rawSendLimit {
			n, _, errno = syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		} else {
			n, _, errno = syscall.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		}
		switch errno {
		case 0:
			sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			return sent, nil
		default:
			return sent, errno
		}
	}
	runtime.KeepAlive(buf)
	return sent, nil
}

// send blocks until at least a part of buf has been passed to the kernel.
func (s *rawSocket) send(buf []byte) (int, error) {
	for {
		if n, err := s.trySend(buf); n > 0 || err != nil {
			return n, err
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return 0, err
		}
	}
}

// shutdown makes all present and future calls on the socket return.
func (s *rawSocket) shutdown() { _ = unix.Shutdown(s.fd, unix.SHUT_RDWR) }

func (s *rawSocket) close() { _ = unix.Close(s.fd) }

// wrappedSocket carries the page plane over a net.Conn that is not a bare socket, such as an encrypted one. Every send goes through the
// connection's queue and writer.
type wrappedSocket struct {
	conn net.Conn
}

func (s wrappedSocket) read(buf []byte) (int, error)    { return s.conn.Read(buf) }
func (s wrappedSocket) trySend(buf []byte) (int, error) { return 0, nil }
func (s wrappedSocket) send(buf []byte) (int, error)    { return s.conn.Write(buf) }
func (s wrappedSocket) shutdown()                       { s.conn.Close() }
func (s wrappedSocket) close()                          { s.conn.Close() }

// socket is a connected stream. read and send block and belong to one thread each; trySend never blocks and may not overlap a send;
// shutdown makes all of them return; close comes after all of them.
type socket interface {
	read(buf []byte) (int, error)
	trySend(buf []byte) (int, error)
	send(buf []byte) (int, error)
	shutdown()
	close()
}

// socketBufferBytes is asked of the kernel for each direction of a page-plane connection: a batch of read-ahead must fit, or its sender
// falls back to the queue.
const socketBufferBytes = 4 << 20

// tuneSocket sizes a socket's buffers before it connects or listens (afterwards would be too late for the TCP window scale). The
// forced variants pass the system's limits and need CAP_NET_ADMIN; without, what the limits give is good enough.
func tuneSocket(network, address string, c syscall.RawConn) error {
	return c.Control(func(u uintptr) {
		fd := int(u)
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBufferBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBufferBytes)
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBufferBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBufferBytes)
		}
	})
}

// pageThreadNice is the priority of threads that serve pages: above everything that waits for a page, or a vCPU that spins on one
// keeps away the very thread that would bring it.
const pageThreadNice = -20

// servePagesThread makes the calling goroutine's thread its own and raises its priority. Without the right to do so it runs at the
// priority it has. The thread ends with the goroutine, since nothing ever unlocks it.
func servePagesThread() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), pageThreadNice)
}

// connReset tells whether an error of a connection says that the other side has closed it or does not listen.
func connReset(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) ||
		errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNREFUSED)
}
