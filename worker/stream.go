package worker

import (
	"errors"
	"fmt"
	"os"

	"github.com/cellvisor/cellvisor/wire"
)

// stream is one kind of output: a log of what has left, and behind it what is held back.
type stream struct {
	logFile
	written int64  // end of the log
	held    []byte // the bytes after that
}

func openStream(fs *files, name, start string) (stream, error) {
	l, err := openLog(fs, name, start, 0)
	if err != nil {
		return stream{}, err
	}
	size, err := sizeOf(l.file)
	if err != nil {
		l.close()
		return stream{}, err
	}
	return stream{logFile: l, written: size}, nil
}

// put adds output, which leaves at once unless hold.
func (s *stream) put(b []byte, hold bool) error {
	if hold {
		s.held = append(s.held, b...)
		return nil
	}
	n, err := s.file.WriteAt(b, s.written)
	s.written += int64(n)
	if err != nil {
		return err
	}
	return s.bound(s.written)
}

// release lets output up to the given offset of the whole leave.
func (s *stream) release(upTo int64) error {
	n := min(upTo-s.written, int64(len(s.held)))
	if n <= 0 {
		return nil
	}
	if err := s.put(s.held[:n], false); err != nil {
		return err
	}
	s.held = append(s.held[:0], s.held[n:]...)
	return nil
}

func (s *stream) end() int64 { return s.written + int64(len(s.held)) }

// begin makes an empty log one of which what was before start was dropped already.
func (s *stream) begin(start wire.LogStart) error {
	if s.end() != 0 || start.Offset > 1<<50 {
		return fmt.Errorf("a log that begins at %d", start.Offset)
	}
	if err := s.file.Truncate(int64(start.Offset)); err != nil {
		return err
	}
	s.written = int64(start.Offset)
	return s.drop(start)
}

// logEnds is a place in each log of output.
type logEnds struct{ console, output int64 }

// historyTo adds the output that has left to a share, from a place on, as far as it is kept. Output must be held back, or what leaves meanwhile is in
// neither this nor a later cut.
func (h *home) historyTo(s *share, from logEnds) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.logs(from) {
		s.addStart(l.kind, l.of.start)
		at := max(l.at, int64(l.of.start.Offset))
		b := make([]byte, max(0, l.of.written-at))
		if _, err := l.of.file.ReadAt(b, at); err != nil {
			return fmt.Errorf("copy a log: %w", err)
		}
		s.addStream(l.kind, outputPiece{offset: at, bytes: b})
	}
	return nil
}

// logAt is a log and a place in it.
type logAt struct {
	kind recordType
	of   *stream
	at   int64
}

func (h *home) logs(at logEnds) [2]logAt {
	return [2]logAt{{recordConsole, &h.console, at.console}, {recordOutput, &h.output, at.output}}
}

// eachPiece hands a log to f as it is up to now, in pieces of at most size bytes, and where it begins before the first and whenever more has been dropped
// meanwhile. It begins at an offset and returns where it ended. The log may grow: no lock is held over f.
func (h *home) eachPiece(s *stream, at int64, size int, begins func(wire.LogStart) error, f func(at int64, b []byte) error) (int64, error) {
	start := func() wire.LogStart {
		h.mu.Lock()
		defer h.mu.Unlock()
		return s.start
	}
	h.mu.Lock()
	end := s.written
	h.mu.Unlock()
	buf := make([]byte, size)
	for {
		if now := start(); now.Offset > uint64(at) {
			if err := begins(now); err != nil {
				return at, err
			}
			at = int64(now.Offset)
		}
		if at >= end {
			return at, nil
		}
		b := buf[:min(int64(size), end-at)]
		switch dropped, err := s.readAt(b, at, start); {
		case dropped:
			continue
		case errors.Is(err, os.ErrClosed):
			return at, errEnded
		case err != nil:
			return at, fmt.Errorf("copy a log: %w", err)
		}
		if err := f(at, b); err != nil {
			return at, err
		}
		at += int64(len(b))
	}
}
