package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/wire"
)

// usher gets a jailed worker its connections to the VM's other parts: it asks serve, which knows who they are, and takes the connection in.
//
//	dial ──WorkerDial──▶ serve ──connects, checks──▶ hand.sock ──descriptor──▶ dial returns
type usher struct {
	log      zerolog.Logger
	listener *net.UnixListener
	ask      func(wire.FromWorker) bool // false: there is no serve

	mu      sync.Mutex
	waiting map[uint64]chan handed // protected by mu
	last    uint64                 // protected by mu
}

// handed is serve's answer.
type handed struct {
	conn net.Conn
	err  error
}

var errNoServe = errors.New("no serve is there to connect for this worker")

// newUsher listens in the working directory.
func newUsher(log zerolog.Logger, ask func(wire.FromWorker) bool) (*usher, error) {
	if err := os.Remove(wire.WorkerHandSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket for connections: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: wire.WorkerHandSocket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket for connections: %w", err)
	}
	return &usher{log: log, listener: l, ask: ask, waiting: map[uint64]chan handed{}}, nil
}

// dialer returns what the page planes connect with; that of a nil usher is nil: they connect by themselves.
func (u *usher) dialer() func(context.Context, string) (net.Conn, error) {
	if u == nil {
		return nil
	}
	return u.dial
}

func (u *usher) dial(ctx context.Context, addr string) (net.Conn, error) {
	answer := make(chan handed, 1)
	u.mu.Lock()
	u.last++
	id := u.last
	u.waiting[id] = answer
	u.mu.Unlock()
	if !u.ask(wire.FromWorker{Dial: &wire.WorkerDial{ID: id, Addr: addr}}) {
		u.answer(id, handed{err: errNoServe})
	}
	select {
	case h := <-answer:
		return h.conn, h.err
	case <-ctx.Done():
		u.answer(id, handed{})            // nobody else answers from here on
		if h := <-answer; h.conn != nil { // but somebody may have
			h.conn.Close()
		}
		return nil, fmt.Errorf("serve has not connected to %s: %w", addr, ctx.Err())
	}
}

// answer ends a wait; false if nobody waits.
func (u *usher) answer(id uint64, h handed) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	answer := u.waiting[id]
	delete(u.waiting, id)
	if answer != nil {
		answer <- h
	}
	return answer != nil
}

// serveGone ends all waits: the next serve knows nothing of them.
func (u *usher) serveGone() {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, answer := range u.waiting {
		delete(u.waiting, id)
		answer <- handed{err: errNoServe}
	}
}

// serve takes what serve hands over, until the listener is closed.
func (u *usher) serve() {
	for {
		conn, err := u.listener.AcceptUnix()
		if err != nil {
			return
		}
		if err := fromServe(conn); err != nil {
			u.log.Warn().Err(err).Msg("a stranger at the socket for connections")
		} else if err := u.take(conn); err != nil {
			u.log.Warn().Err(err).Msg("a connection was not handed over")
		}
		conn.Close()
	}
}

// handLimit bounds what serve says about a connection that it could not make.
const handLimit = 512

// take reads one message.
func (u *usher) take(conn *net.UnixConn) error {
	buf, oob := make([]byte, 8+handLimit), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	var fds []int
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range msgs {
			if more, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, more...)
			}
		}
	}
	var file *os.File
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if file == nil {
			file = os.NewFile(uintptr(fd), "peer")
			continue
		}
		unix.Close(fd)
	}
	if file != nil {
		defer file.Close() // FileConn makes a descriptor of its own
	}
	if n < 8 {
		return fmt.Errorf("a message of %d bytes", n)
	}
	id, h := binary.LittleEndian.Uint64(buf), handed{}
	if file == nil {
		h.err = fmt.Errorf("serve cannot connect: %s", buf[8:n])
	} else if h.conn, err = net.FileConn(file); err != nil {
		h.err = err
	}
	if !u.answer(id, h) && h.conn != nil {
		h.conn.Close()
	}
	return nil
}

// serveUser is the user that serve runs as: this process's, before it is jailed.
var serveUser = os.Geteuid()

// fromServe checks who connected: serve, whose user started this process, or root.
func fromServe(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && int(cred.Uid) != serveUser {
		return fmt.Errorf("process %d of user %d is not serve", cred.Pid, cred.Uid)
	}
	return nil
}
