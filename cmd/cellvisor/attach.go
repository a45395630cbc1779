package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// detachKey ends an interactive console: Ctrl-], as in telnet.
const detachKey = 0x1d

// recentBytes is how much of what a console showed before is shown to who attaches.
const recentBytes = 2048

var (
	errDetached = errors.New("detached")
	errFound    = errors.New("found")
)

// attachment is a console with input: what is typed goes to the guest's serial port, what it prints comes here.
type attachment struct {
	a      *app
	c      *api.Client
	name   string
	offset uint64
	until  string // ends the attachment once the guest has printed it
	raw    bool   // at a terminal: detachKey ends it, Ctrl-C is the guest's
}

// run lasts until the VM has ended, the operator detaches, or the guest has printed what was waited for.
func (t *attachment) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if t.raw {
		restore, err := rawTerminal(t.a.in)
		if err != nil {
			return err
		}
		defer restore()
		fmt.Fprintf(t.a.err, "Attached to VM %s. Ctrl-] detaches.\r\n", t.name)
		defer fmt.Fprint(t.a.err, "\r\n")
	}
	go t.pump(ctx, cancel) // a read of standard input cannot be interrupted: it ends with the process
	out := &watchWriter{w: plainConsole{t.a, t.a.out}, until: []byte(t.until)}
	err := t.c.Console(ctx, t.name, t.offset, true, out)
	switch cause := context.Cause(ctx); {
	case errors.Is(err, errFound), errors.Is(cause, errDetached):
		return nil
	case err == nil && t.until != "":
		return fmt.Errorf("VM %s ended without printing %q", t.name, t.until)
	case ctx.Err() == nil || errors.Is(err, context.DeadlineExceeded):
		return err
	case !errors.Is(cause, context.Canceled):
		return cause
	}
	return api.Detached{Operation: "VM " + t.name}
}

// pump sends what is typed until the input ends. A guest that has ended takes no more; the console's end tells why.
func (t *attachment) pump(ctx context.Context, cancel context.CancelCauseFunc) {
	buf := make([]byte, api.TypeBytes)
	for {
		n, rerr := t.a.in.Read(buf)
		data := buf[:n]
		detach := false
		if i := bytes.IndexByte(data, detachKey); i >= 0 && t.raw {
			data, detach = data[:i], true
		}
		err := t.c.Type(ctx, t.name, data)
		switch {
		case detach:
			cancel(errDetached)
			return
		case status.Code(err) == codes.FailedPrecondition || rerr != nil:
			return
		case err != nil:
			cancel(err)
			return
		}
	}
}

// watchWriter copies to w and fails with errFound once until has come by.
type watchWriter struct {
	w     plainConsole
	until []byte
	tail  []byte
}

func (x *watchWriter) Write(p []byte) (int, error) {
	n, err := x.w.Write(p)
	if err != nil || len(x.until) == 0 {
		return n, err
	}
	x.tail = append(x.tail, p...)
	if bytes.Contains(x.tail, x.until) {
		return n, errFound
	}
	if keep := len(x.until) - 1; len(x.tail) > keep {
		x.tail = append(x.tail[:0], x.tail[len(x.tail)-keep:]...)
	}
	return n, nil
}

// Skip implements api.Skipper.
func (x *watchWriter) Skip(from, to uint64) error {
	x.tail = nil
	return x.w.Skip(from, to)
}

// rawTerminal gives every key to the program. The function it returns puts things back.
func rawTerminal(in io.Reader) (restore func(), err error) {
	f, ok := in.(*os.File)
	if !ok {
		return nil, errors.New("standard input is not a terminal")
	}
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil
}

// attach decides from where on the console is shown, and runs the attachment.
func (a *app) attach(ctx context.Context, c *api.Client, v *api.VM, f consoleFlags) error {
	t := &attachment{a: a, c: c, name: v.GetName(), offset: f.offset, until: f.until, raw: isTerminal(a.in) && isTerminal(a.out)}
	if !f.offsetGiven && v.GetConsoleBytes() > recentBytes {
		t.offset = v.GetConsoleBytes() - recentBytes
	}
	wctx, cancel := withTimeout(ctx, f.timeout)
	defer cancel()
	return waitError(v.GetName(), t.run(wctx))
}
