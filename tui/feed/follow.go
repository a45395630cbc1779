package feed

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/cellvisor/cellvisor/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Log names one of a VM's two logs.
type Log uint8

// The logs of a VM.
const (
	Console Log = iota
	Output
)

// Chunk is the next piece of a log.
type Chunk struct {
	// Data is text to append: console bytes, or one decimal number a line.
	Data []byte
	// Skipped is the number of bytes left out before Data because the guest writes faster than anyone can read.
	Skipped uint64
	// Dropped is the number of bytes, or records, left out before Data because the cluster does not keep them any more.
	Dropped uint64
	// Err is the trouble that the stream has just now; it is being repeated unless Done.
	Err error
	// Done says that the VM has ended and everything was sent, or that the log cannot be had.
	Done bool
}

// Follower follows one log over broken connections, going on from where it was.
type Follower struct {
	feed   *Feed
	name   string
	log    Log
	cancel context.CancelFunc
	// closed is closed by Close, ready holds a token while there is something to read.
	closed <-chan struct{}
	ready  chan struct{}

	// position is the offset or index of the next piece; it belongs to the follower's goroutine.
	position uint64

	mu      sync.Mutex
	pending Chunk // protected by mu
}

// Follow begins to follow a log of a VM from its start. The caller must Close it.
func (f *Feed) Follow(ctx context.Context, vm string, log Log) *Follower {
	ctx, cancel := context.WithCancel(ctx)
	fl := &Follower{feed: f, name: vm, log: log, cancel: cancel, closed: ctx.Done(), ready: make(chan struct{}, 1)}
	go fl.run(ctx)
	return fl
}

// Close ends it. A Next that waits returns.
func (fl *Follower) Close() { fl.cancel() }

// Next waits for news, at most until ctx ends, and returns everything that came since the last call. ok is false when ctx ended or the
// follower was closed.
func (fl *Follower) Next(ctx context.Context) (c Chunk, ok bool) {
	select {
	case <-ctx.Done():
		return Chunk{}, false
	case <-fl.closed:
		return Chunk{}, false
	case <-fl.ready:
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	c, fl.pending = fl.pending, Chunk{}
	return c, true
}

func (fl *Follower) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		heard, err := fl.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			fl.add(Chunk{Done: true})
			return
		}
		if c := status.Code(err); c == codes.NotFound || c == codes.InvalidArgument || c == codes.Unimplemented {
			fl.add(Chunk{Done: true, Err: err})
			return
		}
		if heard {
			failures = 0
		}
		failures++
		fl.add(Chunk{Err: err})
		sleep(ctx, Backoff(failures))
	}
}

// stream reads until the stream ends; its error is never nil.
func (fl *Follower) stream(ctx context.Context) (heard bool, err error) {
	client, err := fl.feed.Client()
	if err != nil {
		return false, err
	}
	ctx, watchdog := newWatchdog(ctx, silence)
	defer watchdog.stop()
	receive, err := fl.open(ctx, client)
	if err != nil {
		return false, err
	}
	for {
		data, dropped, err := receive()
		if err != nil {
			return heard, err
		}
		heard = true
		watchdog.heard()
		if len(data) > 0 {
			fl.add(Chunk{Data: data, Dropped: dropped})
		}
	}
}

// open returns a function that receives the next piece as text, with how much was dropped before it, and moves the position.
func (fl *Follower) open(ctx context.Context, client api.CellvisorClient) (func() ([]byte, uint64, error), error) {
	if fl.log == Console {
		stream, err := client.ConsoleVM(ctx, &api.ConsoleVMRequest{Name: fl.name, Offset: fl.position, Follow: true})
		return func() ([]byte, uint64, error) {
			r, err := stream.Recv()
			return r.GetData(), fl.move(r.GetOffset(), len(r.GetData())), err
		}, err
	}
	stream, err := client.OutputVM(ctx, &api.OutputVMRequest{Name: fl.name, Index: fl.position, Follow: true})
	return func() ([]byte, uint64, error) {
		r, err := stream.Recv()
		var text []byte
		for _, record := range r.GetRecords() {
			text = append(strconv.AppendUint(text, uint64(record), 10), '\n')
		}
		return text, fl.move(r.GetIndex(), len(r.GetRecords())), err
	}, err
}

// move moves the position behind a piece, if it is not empty, and tells how much is missing before it.
func (fl *Follower) move(at uint64, n int) (dropped uint64) {
	if n == 0 {
		return 0
	}
	if at > fl.position {
		dropped = at - fl.position
	}
	fl.position = at + uint64(n)
	return dropped
}

// add joins a piece to what waits to be read.
func (fl *Follower) add(c Chunk) {
	fl.mu.Lock()
	p := &fl.pending
	if c.Dropped > 0 { // what waits is before that, and little beside it
		p.Skipped, p.Data = p.Skipped+uint64(len(p.Data)), nil
	}
	p.Dropped += c.Dropped
	p.Data = append(p.Data, c.Data...)
	if over := len(p.Data) - MaxChunkBytes; over > 0 {
		p.Data = append(p.Data[:0], p.Data[over:]...)
		p.Skipped += uint64(over)
	}
	p.Err, p.Done = c.Err, p.Done || c.Done
	fl.mu.Unlock()
	select {
	case fl.ready <- struct{}{}:
	default:
	}
}
