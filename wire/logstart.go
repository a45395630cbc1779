package wire

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// A VM's logs of what it has put out are bounded: what is oldest is dropped. The rest keeps its offsets; where it begins is in a file beside the log.

// Names of these files, in a worker's directory.
const (
	WorkerConsoleStartFile = "console.start"
	WorkerOutputStartFile  = "output.start"
)

// OptionLogMax is the option of a VM that says how long each of its logs may grow.
const OptionLogMax = "log-max"

// Bounds of OptionLogMax, and what holds without it.
const (
	LogMaxDefault = 256 << 20
	LogMaxLeast   = 64 << 10
	LogMaxMost    = 1 << 40
)

// LogStart is where a log begins: what was before was dropped.
type LogStart struct {
	Offset  uint64 `json:"offset"`  // of the first byte
	Records uint64 `json:"records"` // lines before that
}

// LogStartBytes is the length of an encoded LogStart.
const LogStartBytes = 8 + 8 + 4

// ErrLogStart says that bytes are no LogStart. A reader that reads while one is written may see such for a moment.
var ErrLogStart = errors.New("wire: the start of a log is damaged")

// Encode returns offset 8 | records 8 | crc 4, little endian.
func (s LogStart) Encode() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, LogStartBytes), s.Offset)
	b = binary.LittleEndian.AppendUint64(b, s.Records)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, saveCRC))
}

// DecodeLogStart is the reverse. No bytes at all are the start of a log of which nothing was dropped.
func DecodeLogStart(b []byte) (LogStart, error) {
	switch {
	case len(b) == 0:
		return LogStart{}, nil
	case len(b) != LogStartBytes, binary.LittleEndian.Uint32(b[16:]) != crc32.Checksum(b[:16], saveCRC):
		return LogStart{}, ErrLogStart
	}
	s := LogStart{Offset: binary.LittleEndian.Uint64(b), Records: binary.LittleEndian.Uint64(b[8:])}
	if s.Offset > 1<<60 || s.Records > s.Offset {
		return LogStart{}, ErrLogStart
	}
	return s, nil
}
