package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/wire"
)

// usher gets a jailed worker its connections to the VM's other parts, and the files of its disks: it asks serve, which knows what the VM has, and
// takes them in.
//
//	dial ──WorkerDial──▶ serve ──connects, checks──▶ hand.sock ──descriptor──▶ dial returns
//	openDisk ──WorkerOpenDisk──▶ serve ──opens, checks──▶ hand.sock ──descriptors──▶ openDisk returns
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
	files []*os.File
	note  []byte // what it says beside
	err   error
}

func (h handed) close() {
	for _, f := range h.files {
		f.Close()
	}
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
	h, err := u.get(ctx, func(id uint64) wire.FromWorker { return wire.FromWorker{Dial: &wire.WorkerDial{ID: id, Addr: addr}} })
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer h.close() // FileConn makes a descriptor of its own
	if len(h.files) != 1 {
		return nil, fmt.Errorf("connect to %s: serve handed over %d descriptors", addr, len(h.files))
	}
	return net.FileConn(h.files[0])
}

// diskPatience is for how long a worker waits for a serve to open a disk: one that was killed is back by then, or the lease has lapsed.
const diskPatience = 10 * time.Second

// openDisk gets the files of a copy of a disk.
func (u *usher) openDisk(ctx context.Context, ask wire.WorkerOpenDisk) (*disk.Files, error) {
	ctx, cancel := context.WithTimeout(ctx, diskPatience)
	defer cancel()
	for {
		h, err := u.get(ctx, func(id uint64) wire.FromWorker {
			ask.ID = id
			return wire.FromWorker{OpenDisk: &ask}
		})
		switch {
		case err == nil && len(h.files) == 3 && len(h.note) == 1:
			return &disk.Files{Image: h.files[0], Sums: h.files[1], Journal: h.files[2], Linked: h.note[0] == 1}, nil
		case err == nil:
			h.close()
			return nil, fmt.Errorf("open disk %s: serve handed over %d descriptors", ask.Disk, len(h.files))
		case !errors.Is(err, errNoServe):
			return nil, fmt.Errorf("open disk %s: %w", ask.Disk, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("open disk %s: %w", ask.Disk, err)
		case <-time.After(replicaBackoff):
		}
	}
}

// get asks serve for something and waits for it.
func (u *usher) get(ctx context.Context, ask func(id uint64) wire.FromWorker) (handed, error) {
	answer := make(chan handed, 1)
	u.mu.Lock()
	u.last++
	id := u.last
	u.waiting[id] = answer
	u.mu.Unlock()
	if !u.ask(ask(id)) {
		u.answer(id, handed{err: errNoServe})
	}
	select {
	case h := <-answer:
		return h, h.err
	case <-ctx.Done():
		u.answer(id, handed{}) // nobody else answers from here on
		(<-answer).close()     // but somebody may have
		return handed{}, fmt.Errorf("serve has not answered: %w", ctx.Err())
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

// handPatience bounds the wait for what a serve that has connected hands over: one that stops in the middle must not keep all later ones away.
const handPatience = 5 * time.Second

// take reads one message.
func (u *usher) take(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(handPatience)); err != nil {
		return err
	}
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
	var h handed
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		h.files = append(h.files, os.NewFile(uintptr(fd), "handed over"))
	}
	if n < 8 {
		h.close()
		return fmt.Errorf("a message of %d bytes", n)
	}
	id := binary.LittleEndian.Uint64(buf)
	if h.note = buf[8:n]; len(h.files) == 0 {
		h.err = fmt.Errorf("serve cannot: %s", h.note)
	}
	if !u.answer(id, h) {
		h.close()
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
