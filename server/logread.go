package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// logReader reads a log of output that a worker writes, and from which it drops what is oldest. What is read is never of the hole that this leaves: the
// worker says where the log begins before it makes the hole, and that is looked at after each read.
type logReader struct {
	path, start string
	f, mark     *os.File
	at          uint64
}

func (l *logReader) close() {
	_ = l.f.Close() // of nil too: that is only an error
	_ = l.mark.Close()
}

// begins returns where the log begins.
func (l *logReader) begins() (wire.LogStart, error) {
	if l.mark == nil {
		f, err := os.Open(l.start)
		if errors.Is(err, os.ErrNotExist) { // of a worker that drops nothing
			return wire.LogStart{}, nil
		}
		if err != nil {
			return wire.LogStart{}, err
		}
		l.mark = f
	}
	const tries = 100 // one that is just being written looks damaged
	b := make([]byte, wire.LogStartBytes+1)
	for i := 0; ; i++ {
		n, err := l.mark.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return wire.LogStart{}, err
		}
		if s, err := wire.DecodeLogStart(b[:n]); err == nil || i == tries {
			return s, err
		}
		time.Sleep(time.Duration(min(i, 10)) * 100 * time.Microsecond)
	}
}

// read reads what is there at l.at, which the caller then moves. A file that is not there yet is empty. If what was there has been dropped, it moves l.at to
// where the log begins, and says where that is.
func (l *logReader) read(b []byte) (n int, dropped *wire.LogStart, err error) {
	if l.f == nil {
		f, err := os.Open(l.path)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil, nil
		}
		if err != nil {
			return 0, nil, err
		}
		l.f = f
	}
	for {
		n, err := l.f.ReadAt(b, int64(l.at))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, nil, err
		}
		s, err := l.begins()
		if err != nil {
			return 0, nil, err
		}
		if s.Offset <= l.at {
			return n, dropped, nil
		}
		l.at, dropped = s.Offset, &s
	}
}

// records reads an output log: one decimal number a line. A line without its end is still being written.
type records struct {
	log  logReader
	part []byte // of a line whose end has not been seen
	at   uint64 // index of the next record
	want uint64 // index of the first record to return
	buf  []byte
	left []byte // of buf: read and not yet looked at
}

// read returns up to limit records that are there now, and the index of the first.
func (r *records) read(limit int) (first uint64, batch []uint32, err error) {
	for len(batch) < limit {
		if len(r.left) == 0 {
			if more, err := r.fill(len(batch) == 0); err != nil || !more {
				return first, batch, err
			}
		}
		end := bytes.IndexByte(r.left, '\n')
		if end < 0 {
			r.part, r.left = append(r.part, r.left...), nil
			if len(r.part) > 32 {
				return 0, nil, fmt.Errorf("record %d is not a number", r.at)
			}
			continue
		}
		r.part, r.left = append(r.part, r.left[:end]...), r.left[end+1:]
		n, err := strconv.ParseUint(string(r.part), 10, 32)
		if err != nil {
			return 0, nil, fmt.Errorf("record %d: %w", r.at, err)
		}
		r.part = r.part[:0]
		if r.at >= r.want {
			if len(batch) == 0 {
				first = r.at
			}
			batch = append(batch, uint32(n))
		}
		r.at++
	}
	return first, batch, nil
}

// fill reads more, and tells whether there is any. A batch that has records gets none from behind what was dropped.
func (r *records) fill(fresh bool) (bool, error) {
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	before := r.log.at
	n, dropped, err := r.log.read(r.buf)
	switch {
	case err != nil:
		return false, err
	case dropped != nil && !fresh:
		r.log.at = before // it is come upon again
		return false, nil
	case dropped != nil:
		r.part, r.at = nil, dropped.Records
	}
	r.log.at += uint64(n)
	r.left = r.buf[:n]
	return n > 0, nil
}

// logSizes is how long a VM's logs are, and how much of their beginnings was dropped.
type logSizes struct {
	console, consoleDropped uint64 // bytes
	records, recordsDropped uint64
}

// logCounts remembers how far the records of output logs were counted: a log only grows. The zero value is ready.
type logCounts struct {
	mu   sync.Mutex
	logs map[string]*logCount // protected by mu; by path
}

type logCount struct {
	mu      sync.Mutex
	at      uint64 // protected by mu; bytes counted
	records uint64 // protected by mu; in these
}

// of returns a log's count. Those of VMs that are gone are forgotten when there are many.
func (c *logCounts) of(path string) *logCount {
	const many = 4096
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.logs == nil || len(c.logs) >= many {
		c.logs = map[string]*logCount{}
	}
	if c.logs[path] == nil {
		c.logs[path] = &logCount{}
	}
	return c.logs[path]
}

// logSizes reads the logs of a VM whose home this server is, as far as it has not done so before.
func (v *service) logSizes(vm *cells.VM) (out logSizes) {
	if st, err := os.Stat(v.logPath(vm, wire.WorkerConsoleFile)); err == nil {
		out.console = uint64(st.Size())
	}
	console := logReader{start: v.logPath(vm, wire.WorkerConsoleStartFile)}
	defer console.close()
	if s, err := console.begins(); err == nil {
		out.consoleDropped = s.Offset
	}
	log := logReader{path: v.logPath(vm, wire.WorkerOutputFile), start: v.logPath(vm, wire.WorkerOutputStartFile)}
	defer log.close()
	c := v.counts.of(log.path)
	c.mu.Lock()
	defer c.mu.Unlock()
	if st, err := os.Stat(log.path); err == nil && uint64(st.Size()) < c.at { // another log, of before a move
		c.at, c.records = 0, 0
	}
	log.at = c.at
	buf := make([]byte, 256<<10)
	for {
		n, dropped, err := log.read(buf)
		if err != nil {
			break
		}
		if dropped != nil {
			c.records = dropped.Records
		}
		log.at += uint64(n)
		c.at, c.records = log.at, c.records+uint64(bytes.Count(buf[:n], []byte{'\n'}))
		if n == 0 {
			break
		}
	}
	out.records = c.records
	if s, err := log.begins(); err == nil {
		out.recordsDropped = s.Records
	}
	return out
}
