package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/wire"
)

// logFile is a log of output. It is bounded, or one guest could fill the server's data directory: once it is longer than its limit, what is oldest is
// dropped, by a hole at the start of the file.
//
//	| hole: dropped        | kept, at the offsets that it always had      |
//	0                      start                                          end
//
// Where the log begins is in a file beside it, and is there before the hole is: whoever reads, and finds after that that the log still begins before
// what was read, has read what was put out. Each replica of a VM drops for itself, by the same limit.
type logFile struct {
	file  *os.File
	mark  *os.File // wire.LogStart
	start wire.LogStart
	limit int64 // 0: none
}

// logLimit is how long each log of a VM may be.
func logLimit(options map[string]string) int64 {
	text, given := options[wire.OptionLogMax]
	if n, err := config.ParseSize(text); given && err == nil && n >= wire.LogMaxLeast && n <= wire.LogMaxMost {
		return int64(n)
	}
	return wire.LogMaxDefault
}

// openLog opens a log and the file that says where it begins. With os.O_TRUNC in flags it is a new one.
func openLog(fs *files, name, start string, flags int) (l logFile, err error) {
	l.limit = fs.logLimit
	if l.file, err = fs.open(name, os.O_CREATE|os.O_RDWR|flags); err != nil {
		return l, err
	}
	if l.mark, err = fs.open(start, os.O_CREATE|os.O_RDWR|flags); err != nil {
		l.file.Close()
		return l, err
	}
	b := make([]byte, wire.LogStartBytes+1)
	n, err := l.mark.ReadAt(b, 0)
	if err == nil || errors.Is(err, io.EOF) {
		l.start, err = wire.DecodeLogStart(b[:n])
	}
	if err != nil {
		l.close()
		return l, fmt.Errorf("%s: %w", start, err)
	}
	return l, nil
}

func (l *logFile) close() {
	l.file.Close()
	l.mark.Close()
}

// bound drops what is oldest of a log that ends at end, if it is too long.
func (l *logFile) bound(end int64) error {
	if l.limit == 0 || end-int64(l.start.Offset) <= l.limit {
		return nil
	}
	start, err := l.lineBefore(end - (l.limit - l.limit/8))
	if err != nil {
		return err
	}
	return l.drop(start)
}

// lineBefore returns the last begin of a line before an offset, or the offset itself if that is far away.
func (l *logFile) lineBefore(end int64) (wire.LogStart, error) {
	s := wire.LogStart{Offset: uint64(end), Records: l.start.Records}
	buf := make([]byte, 256<<10)
	for at := int64(l.start.Offset); at < end; {
		b := buf[:min(int64(len(buf)), end-at)]
		if _, err := l.file.ReadAt(b, at); err != nil {
			return s, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			s.Offset = uint64(at) + uint64(i) + 1
			s.Records += uint64(bytes.Count(b, []byte{'\n'}))
		}
		at += int64(len(b))
	}
	if int64(s.Offset) < end-l.limit/8 {
		s.Offset = uint64(end)
	}
	return s, nil
}

// drop drops what is before start.
func (l *logFile) drop(start wire.LogStart) error {
	if start.Offset <= l.start.Offset {
		return nil
	}
	if _, err := l.mark.WriteAt(start.Encode(), 0); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(l.mark.Fd())); err != nil { // or a loss of power could leave the hole without a word of it
		return err
	}
	l.start = start
	err := unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(start.Offset))
	if errors.Is(err, unix.EOPNOTSUPP) { // a file system without holes keeps what it has; docs/operations.md says so
		return nil
	}
	return err
}

// readAt fills b from an offset, if the log still begins before that; else it tells where it does begin. It needs no lock but for start.
func (l *logFile) readAt(b []byte, at int64, start func() wire.LogStart) (dropped bool, err error) {
	_, err = l.file.ReadAt(b, at)
	if s := start(); s.Offset > uint64(at) {
		return true, nil
	}
	return false, err
}

// logBegins takes in what home has dropped of a log. It requires mu.
func (s *standby) logBegins(of recordType, b []byte) error {
	start, err := wire.DecodeLogStart(b)
	if err != nil || len(b) == 0 {
		return fmt.Errorf("%w: the start of a log", errBadShare)
	}
	switch of {
	case recordConsole:
		return s.console.drop(start)
	case recordOutput:
		return s.output.drop(start)
	}
	return fmt.Errorf("%w: the start of log %d", errBadShare, of)
}

// boundLogs drops what is oldest of logs that are here as a whole, but nothing behind a checkpoint that may have to be gone back to. It requires mu.
func (s *standby) boundLogs() error {
	if !s.complete {
		return nil
	}
	for i, l := range []*logFile{&s.console, &s.output} {
		end, err := sizeOf(l.file)
		if err == nil && len(s.undo) > 0 {
			end = min(end, []int64{s.undo[0].console, s.undo[0].output}[i])
		}
		if err == nil {
			err = l.bound(end)
		}
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}
