package api

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// receiver is the client side of a stream of messages M.
type receiver[M any] interface{ Recv() (*M, error) }

// follow opens a stream, hands each message to each, and opens it again at another server when the one that serves it dies or falls silent.
// open is called anew each time, so it must ask for what has not been seen yet. It returns nil at the stream's own end.
func follow[M any](ctx context.Context, c *Client, watch bool, open func(context.Context, CellvisorClient) (receiver[M], error), each func(*M) error) error {
	patience, away := streamSilence, absenceFirst
	var heard time.Time // when a message last came, about
	for failures := 0; ; {
		addr := c.Addr()
		quiet := patience
		if !watch {
			quiet = 0
		}
		progress, silent, err := followOnce(ctx, c.API(), quiet, open, each)
		if own := (errEach{}); errors.As(err, &own) {
			return own.error
		}
		switch {
		case err == nil:
			return nil
		case late(ctx):
			return context.DeadlineExceeded
		case ctx.Err() != nil || !elsewhere(err):
			return err
		}
		if silent { // if all are slow, it does not help to hurry from one to the other
			patience = min(2*patience, silenceMost)
		}
		if progress {
			failures, patience, away, heard = 0, streamSilence, absenceFirst, time.Now()
		}
		bears := func(err error) bool { // it waits for a moment if it does: at first a short one, for servers that are about to agree on who is left
			if ctx.Err() != nil || !watch || !Absent(err, heard) {
				return false
			}
			pause(ctx, away)
			away = min(2*away, absencePause)
			return true
		}
		if failures++; failures > 2*len(c.addrs)+2 && !bears(err) {
			return err
		}
		for cerr := c.choose(ctx, addr); cerr != nil; cerr = c.choose(ctx, addr) {
			if late(ctx) {
				return context.DeadlineExceeded
			}
			if !bears(cerr) {
				return cerr
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Absent tells whether err is of a cluster none of whose servers has answered, and whoever watches what it last heard of at a time should go on asking: they
// may all be starting again.
func Absent(err error, heard time.Time) bool {
	return elsewhere(err) && time.Since(heard) < absence
}

// late tells whether the caller's deadline has passed, or is about to: the server knows it too, and may end the stream a moment earlier.
func late(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < 100*time.Millisecond
}

// errEach marks an error of the caller's own function, which must not be taken for one of the stream.
type errEach struct{ error }

// followOnce gives up a stream that says nothing for as long as patience; 0: never.
func followOnce[M any](ctx context.Context, svc CellvisorClient, patience time.Duration, open func(context.Context, CellvisorClient) (receiver[M], error), each func(*M) error) (progress, silent bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := errors.New("silence")
	var quiet *time.Timer
	sctx, scancel := context.WithCancelCause(ctx)
	defer scancel(nil)
	if patience > 0 {
		quiet = time.AfterFunc(patience, func() { scancel(silence) })
		defer quiet.Stop()
	}
	stream, err := open(sctx, svc)
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err != nil {
			break
		}
		progress = true
		if quiet != nil {
			quiet.Reset(patience)
		}
		if eerr := each(m); eerr != nil {
			return progress, false, errEach{eerr}
		}
	}
	if errors.Is(err, io.EOF) {
		return progress, false, nil
	}
	if context.Cause(sctx) == silence {
		return progress, true, status.Errorf(codes.Unavailable, "the server said nothing for %v", patience)
	}
	return progress, false, err
}

// Wait follows a VM until its state satisfies until, and returns it as it was last seen. each, if not nil, sees every change.
func (c *Client) Wait(ctx context.Context, name string, id uint64, until WaitVMRequest_Until, each func(*VM)) (*VM, error) {
	var last *VM
	err := follow(ctx, c, true,
		func(ctx context.Context, svc CellvisorClient) (receiver[WaitVMResponse], error) {
			return svc.WaitVM(ctx, &WaitVMRequest{Name: name, Id: id, Until: until})
		},
		func(m *WaitVMResponse) error {
			if m.GetVm() != nil {
				last = m.GetVm()
				if each != nil {
					each(last)
				}
			}
			return nil
		})
	if err == nil && last == nil {
		err = status.Errorf(codes.Internal, "the server ended the wait for VM %q without a word about it", name)
	}
	return last, err
}

// Skipper is a writer of a console that wants to know what is left out of it: the bytes from an offset to another were dropped, since a log is bounded.
type Skipper interface{ Skip(from, to uint64) error }

// Console writes the VM's console bytes from offset on to w, which may be a Skipper; with tail, until the VM has ended.
func (c *Client) Console(ctx context.Context, name string, offset uint64, tail bool, w io.Writer) error {
	return follow(ctx, c, tail,
		func(ctx context.Context, svc CellvisorClient) (receiver[ConsoleVMResponse], error) {
			return svc.ConsoleVM(ctx, &ConsoleVMRequest{Name: name, Offset: offset, Follow: tail})
		},
		func(m *ConsoleVMResponse) error {
			data := m.GetData()
			if m.GetOffset() < offset { // a repeated beginning
				data = data[min(offset-m.GetOffset(), uint64(len(data))):]
			}
			if len(data) == 0 {
				return nil
			}
			if skipper, ok := w.(Skipper); ok && m.GetOffset() > offset {
				if err := skipper.Skip(offset, m.GetOffset()); err != nil {
					return err
				}
			}
			offset = max(offset, m.GetOffset()) + uint64(len(data))
			_, err := w.Write(data)
			return err
		})
}

// Output hands the VM's output records from index on to each; with tail, until the VM has ended. Indexes that are left out are of records that were dropped.
func (c *Client) Output(ctx context.Context, name string, index uint64, tail bool, each func(index uint64, record uint32) error) error {
	return follow(ctx, c, tail,
		func(ctx context.Context, svc CellvisorClient) (receiver[OutputVMResponse], error) {
			return svc.OutputVM(ctx, &OutputVMRequest{Name: name, Index: index, Follow: tail})
		},
		func(m *OutputVMResponse) error {
			for i, r := range m.GetRecords() {
				at := m.GetIndex() + uint64(i)
				if at < index {
					continue
				}
				if err := each(at, r); err != nil {
					return err
				}
				index = at + 1
			}
			return nil
		})
}

// FollowEvents hands events from sequence number from on to each; with tail, for ever. Sequence numbers belong to one server: when the stream
// goes on at another one, events of the replicated log are recognised by their index and local ones by their time, so that none is
// repeated.
func (c *Client) FollowEvents(ctx context.Context, from uint64, tail bool, each func(*Event) error) error {
	var server string
	var lastIndex uint64
	var lastTime time.Time
	moved := false
	return follow(ctx, c, tail,
		func(ctx context.Context, svc CellvisorClient) (receiver[EventsResponse], error) {
			if addr := c.Addr(); addr != server {
				if moved = server != ""; moved {
					from = 0
				}
				server = addr
			}
			return svc.Events(ctx, &EventsRequest{FromSeq: from, Follow: tail})
		},
		func(m *EventsResponse) error {
			for _, e := range m.GetEvents() {
				from = e.GetSeq() + 1
				at := e.GetTime().AsTime()
				if moved && (e.GetLogIndex() != 0 && e.GetLogIndex() <= lastIndex || e.GetLogIndex() == 0 && !at.After(lastTime)) {
					continue
				}
				lastIndex = max(lastIndex, e.GetLogIndex())
				if at.After(lastTime) {
					lastTime = at
				}
				if err := each(e); err != nil {
					return err
				}
			}
			return nil
		})
}
