package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// A saved VM is a file, or a stream, of records between a head and an end:
//
//	head    "CELLSAVE" | version 4
//	record  type 1 | key 8 | length 4 | bytes | crc 4
//	end     a record of type SaveEnd: the SHA-256 of all before it
//
// All integers are little endian. A record's crc is chained: it covers the crc before it, so that a record which is missing, doubled or elsewhere shows
// at the place where it does. The hash at the end is for the whole.

// SaveVersion is the version that this program writes and reads.
const SaveVersion = 1

// SaveRecordLimit bounds a record's bytes.
const SaveRecordLimit = 1 << 20

const (
	saveMagic      = "CELLSAVE"
	saveHeadBytes  = len(saveMagic) + 4
	saveFrameBytes = 1 + 8 + 4
)

// SaveType says what a record is.
type SaveType uint8

// Types of records. Zero is none.
const (
	SaveAbout   SaveType = 1 + iota // SaveAboutVM, the first record
	SaveFile                        // a piece of a file that the guest is started from; key: its number in SaveAboutVM.Files
	SaveMachine                     // SaveHost: where the parts' states come from
	SaveVCPU                        // a vCPU's state; key: its number
	SaveDevice                      // the devices' state
	SaveConsole                     // a piece of the console; key: its offset
	SaveOutput                      // a piece of the output log; key: its offset
	SavePages                       // pages of memory, compressed; key: how many
	SaveFailed                      // why the rest is missing, for people; between processes only
	SaveEnd
	saveTypeEnd
)

// SaveAboutVM says what was saved.
type SaveAboutVM struct {
	Name    string          `json:"name"`
	Cluster string          `json:"cluster"` // ID
	Program string          `json:"program"` // version that wrote it
	UnixMs  int64           `json:"unix_ms"`
	Spec    json.RawMessage `json:"spec"`
	Files   []SaveFileOf    `json:"files,omitempty"`
}

// SaveFileOf is a file that goes along.
type SaveFileOf struct {
	SHA256 string `json:"sha256"`
	Bytes  uint64 `json:"bytes"`
}

// SaveHost is what a saved VM asks of the server that it goes on at.
type SaveHost struct {
	CPU   string `json:"cpu"` // the processor's model, see package probe
	Pages uint64 `json:"pages"`
	VCPUs int    `json:"vcpus"`
}

// SaveRecord is one record.
type SaveRecord struct {
	Type SaveType
	Key  uint64
	Data []byte
}

// Sentinels of saved VMs.
var (
	ErrNotSaved     = errors.New("this is no saved VM")
	ErrSavedVersion = errors.New("this saved VM is of a version that this program does not read")
	ErrSavedShort   = errors.New("the saved VM is cut short")
	ErrSavedDamaged = errors.New("the saved VM is damaged")
)

var saveCRC = crc32.MakeTable(crc32.Castagnoli)

// SaveWriter writes a saved VM.
type SaveWriter struct {
	to   io.Writer
	sum  hash.Hash
	crc  uint32
	buf  []byte
	size uint64
}

// NewSaveWriter begins one.
func NewSaveWriter(to io.Writer) (*SaveWriter, error) {
	w := &SaveWriter{to: to, sum: sha256.New()}
	head := binary.LittleEndian.AppendUint32([]byte(saveMagic), SaveVersion)
	w.crc = crc32.Checksum(head, saveCRC)
	return w, w.put(head)
}

func (w *SaveWriter) put(b []byte) error {
	w.sum.Write(b)
	n, err := w.to.Write(b)
	w.size += uint64(n)
	return err
}

// Write adds a record.
func (w *SaveWriter) Write(r SaveRecord) error {
	if len(r.Data) > SaveRecordLimit {
		return fmt.Errorf("wire: saved record of %d bytes, limit %d: %w", len(r.Data), SaveRecordLimit, ErrTooLarge)
	}
	b := append(w.buf[:0], byte(r.Type))
	b = binary.LittleEndian.AppendUint64(b, r.Key)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Data)))
	b = append(b, r.Data...)
	w.crc = crc32.Update(w.crc, saveCRC, b)
	b = binary.LittleEndian.AppendUint32(b, w.crc)
	w.buf = b
	return w.put(b)
}

// WriteJSON adds a record that is JSON.
func (w *SaveWriter) WriteJSON(t SaveType, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("wire: encode %T: %w", v, err)
	}
	return w.Write(SaveRecord{Type: t, Data: text})
}

// Close adds the end. It does not close what is written to.
func (w *SaveWriter) Close() error { return w.Write(SaveRecord{Type: SaveEnd, Data: w.sum.Sum(nil)}) }

// Size is how many bytes were written.
func (w *SaveWriter) Size() uint64 { return w.size }

// SaveReader reads a saved VM.
type SaveReader struct {
	from io.Reader
	sum  hash.Hash
	crc  uint32
	at   uint64
	buf  []byte
	end  bool
}

// NewSaveReader checks the head.
func NewSaveReader(from io.Reader) (*SaveReader, error) {
	r := &SaveReader{from: from, sum: sha256.New()}
	var head [saveHeadBytes]byte
	switch n, err := io.ReadFull(from, head[:]); {
	case n >= len(saveMagic) && string(head[:len(saveMagic)]) != saveMagic, err != nil && !bytes.HasPrefix([]byte(saveMagic), head[:min(n, len(saveMagic))]):
		return nil, ErrNotSaved
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("%w: it has %d bytes", ErrSavedShort, n)
	case err != nil:
		return nil, err
	}
	if v := binary.LittleEndian.Uint32(head[len(saveMagic):]); v != SaveVersion {
		return nil, fmt.Errorf("%w: it has version %d, this program reads version %d", ErrSavedVersion, v, SaveVersion)
	}
	r.sum.Write(head[:])
	r.crc, r.at = crc32.Checksum(head[:], saveCRC), uint64(len(head))
	return r, nil
}

// Next returns the next record, whose bytes are good until the call after, or io.EOF behind an end that is right.
func (r *SaveReader) Next() (SaveRecord, error) {
	if r.end {
		return SaveRecord{}, io.EOF
	}
	var head [saveFrameBytes]byte
	if err := r.fill(head[:]); err != nil {
		return SaveRecord{}, err
	}
	rec := SaveRecord{Type: SaveType(head[0]), Key: binary.LittleEndian.Uint64(head[1:])}
	n := binary.LittleEndian.Uint32(head[9:])
	if n > SaveRecordLimit || rec.Type == 0 || rec.Type >= saveTypeEnd {
		return SaveRecord{}, fmt.Errorf("%w: at byte %d", ErrSavedDamaged, r.at)
	}
	if uint32(cap(r.buf)) < n+4 {
		r.buf = make([]byte, n+4)
	}
	b := r.buf[:n+4]
	if err := r.fill(b); err != nil {
		return SaveRecord{}, err
	}
	r.crc = crc32.Update(crc32.Update(r.crc, saveCRC, head[:]), saveCRC, b[:n])
	if binary.LittleEndian.Uint32(b[n:]) != r.crc {
		return SaveRecord{}, fmt.Errorf("%w: in the %d bytes at byte %d", ErrSavedDamaged, n, r.at)
	}
	rec.Data = b[:n]
	r.at += uint64(len(head)) + uint64(len(b))
	if rec.Type == SaveEnd {
		if !bytes.Equal(rec.Data, r.sum.Sum(nil)) {
			return SaveRecord{}, fmt.Errorf("%w: its end does not match", ErrSavedDamaged)
		}
		r.end = true
		return SaveRecord{}, io.EOF
	}
	r.sum.Write(head[:])
	r.sum.Write(b)
	return rec, nil
}

func (r *SaveReader) fill(b []byte) error {
	_, err := io.ReadFull(r.from, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends after byte %d without its end", ErrSavedShort, r.at)
	}
	return err
}
