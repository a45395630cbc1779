package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Disk is what a block device keeps its blocks on. Calls may come from several queues at once.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Size is in bytes, a multiple of SectorBytes.
	Size() int64
	// Sync makes everything written durable.
	Sync() error
	// Discard gives the range's space back; what is read there later is undefined.
	Discard(off, n int64) error
	// Zero makes the range read as zeros.
	Zero(off, n int64) error
	Close() error
}

// Waiting is a Disk whose calls may wait for others for long. They return ErrLater, having done nothing that cannot be done again, once the function
// that it is given says that the device is to rest; the request is carried out anew when the device goes on.
type Waiting interface {
	Rests(func() bool)
}

// ErrLater is what a Waiting disk returns.
var ErrLater = errors.New("to be done again later")

// SectorBytes is the unit of a block device's addresses.
const SectorBytes = 512

// Request types and results, and features: virtio 1.2, section 5.2.
const (
	blockIn          = 0
	blockOut         = 1
	blockFlush       = 4
	blockGetID       = 8
	blockDiscard     = 11
	blockWriteZeroes = 13

	blockOK          = 0
	blockError       = 1
	blockUnsupported = 2

	blockSegMax     = 1 << 2
	blockReadOnly   = 1 << 5
	blockBlockSize  = 1 << 6
	blockFlushable  = 1 << 9
	blockMultiQueue = 1 << 12
	blockDiscards   = 1 << 13
	blockZeroes     = 1 << 14

	blockQueueSize   = 256
	blockHeaderBytes = 16
	blockIDBytes     = 20
	blockConfigBytes = 60
	rangeBytes       = 16 // of one segment of a discard or write-zeroes request

	// maxRangeSectors bounds one segment of a discard or write-zeroes request.
	maxRangeSectors  = 1 << 22
	maxRangeSegments = 32
	blockMaxSegments = 126
	blockMaxData     = 16 << 20
)

// Block is a block device.
type Block struct {
	disk     Disk
	id       string
	readOnly bool
	queues   int
	pairs    Pairs // nil: nobody wants to know
}

// NewBlock makes a block device of a disk with a number of queues; the guest sees id as its serial number.
func NewBlock(disk Disk, id string, readOnly bool, queues int) *Block {
	return &Block{disk: disk, id: id, readOnly: readOnly, queues: max(1, queues)}
}

// Type implements Backend.
func (b *Block) Type() uint16 { return 2 }

// Features implements Backend.
func (b *Block) Features() uint64 {
	f := uint64(blockSegMax | blockBlockSize | blockFlushable | blockMultiQueue)
	if b.readOnly {
		return f | blockReadOnly
	}
	return f | blockDiscards | blockZeroes
}

// Queues implements Backend.
func (b *Block) Queues() []uint16 {
	out := make([]uint16, b.queues)
	for i := range out {
		out[i] = blockQueueSize
	}
	return out
}

// Config implements Backend.
func (b *Block) Config() []byte {
	le := binary.LittleEndian
	c := make([]byte, blockConfigBytes)
	le.PutUint64(c[0:], uint64(b.disk.Size())/SectorBytes)
	le.PutUint32(c[12:], blockMaxSegments)
	le.PutUint32(c[20:], SectorBytes)
	le.PutUint16(c[34:], uint16(b.queues))
	const alignment = 8 // sectors: a page
	le.PutUint32(c[36:], maxRangeSectors)
	le.PutUint32(c[40:], maxRangeSegments)
	le.PutUint32(c[44:], alignment)
	le.PutUint32(c[48:], maxRangeSectors)
	le.PutUint32(c[52:], maxRangeSegments)
	c[56] = 1 // zeroes may unmap
	return c
}

// Reset implements Backend.
func (b *Block) Reset() {}

// attach implements attached.
func (b *Block) attach(d *Device) {
	if w, ok := b.disk.(Waiting); ok {
		w.Rests(d.rests)
	}
}

// Close implements Backend.
func (b *Block) Close() error { return b.disk.Close() }

// Handle implements Backend.
func (b *Block) Handle(_ int, h *Handler) error {
	for !h.Held() {
		c, err := h.Pop()
		if err != nil || c == nil {
			return err
		}
		if err := b.request(c); errors.Is(err, ErrLater) {
			h.unpop()
			return nil
		} else if err != nil {
			return err
		}
		if err := h.Done(c); err != nil {
			return err
		}
	}
	return nil
}

// request carries out one request. An error is the driver's; what goes wrong with the disk is in the request's status.
func (b *Block) request(c *Chain) error {
	var head [blockHeaderBytes]byte
	if err := c.Read(head[:]); err != nil {
		return err
	}
	if c.WriteLen() < 1 {
		return fmt.Errorf("%w: a block request without a status byte", errBroken)
	}
	kind, sector := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint64(head[8:])
	status := byte(blockOK)
	err := b.execute(c, kind, sector)
	switch {
	case errors.Is(err, errBroken), errors.Is(err, ErrLater):
		return err
	case errors.Is(err, errUnsupported):
		status = blockUnsupported
	case err != nil:
		status = blockError
	}
	// The status is the last byte; what lies between is data that was not written.
	for left := c.WriteLen() - 1; left > 0; {
		n := min(left, int(c.writable[0].length))
		c.writable = advance(c.writable, n)
		left -= n
	}
	for c.writable[0].length == 0 {
		c.writable = c.writable[1:]
	}
	return c.Write([]byte{status})
}

var (
	errUnsupported = errors.New("not supported")
	errRange       = errors.New("outside the disk")
)

func (b *Block) execute(c *Chain, kind uint32, sector uint64) error {
	switch {
	case kind == blockIn:
		return b.read(c, sector)
	case kind == blockFlush:
		return b.disk.Sync()
	case kind == blockGetID:
		id := make([]byte, min(blockIDBytes, c.WriteLen()-1))
		copy(id, b.id)
		return c.Write(id)
	case b.readOnly && (kind == blockOut || kind == blockDiscard || kind == blockWriteZeroes):
		return unix.EROFS
	case kind == blockOut:
		return b.write(c, sector)
	case kind == blockDiscard:
		return b.ranges(c, b.disk.Discard)
	case kind == blockWriteZeroes:
		return b.ranges(c, b.disk.Zero)
	}
	return errUnsupported
}

// extent checks that n bytes from sector on are whole sectors of the disk.
func (b *Block) extent(sector uint64, n int) (int64, error) {
	sectors := uint64(b.disk.Size()) / SectorBytes
	if n%SectorBytes != 0 || n > blockMaxData || sector > sectors || uint64(n)/SectorBytes > sectors-sector {
		return 0, errRange
	}
	return int64(sector) * SectorBytes, nil
}

func (b *Block) read(c *Chain, sector uint64) error {
	n := c.WriteLen() - 1
	off, err := b.extent(sector, n)
	if err != nil {
		return err
	}
	buf := make([]byte, n)
	since := uint64(0)
	if b.pairs != nil {
		since = b.pairs.Reading()
	}
	if _, err := b.disk.ReadAt(buf, off); err != nil && n > 0 {
		return err
	}
	into := slices.Clone(c.writable)
	if err := c.Write(buf); err != nil {
		return err
	}
	b.equal(since, into, off, buf)
	return nil
}

func (b *Block) write(c *Chain, sector uint64) error {
	n := c.ReadLen()
	off, err := b.extent(sector, n)
	if err != nil {
		return err
	}
	buf := make([]byte, n)
	from := slices.Clone(c.readable)
	if err := c.Read(buf); err != nil {
		return err
	}
	since, alone, err := b.changing(off, int64(n), func() error {
		_, err := b.disk.WriteAt(buf, off)
		return err
	})
	if alone {
		b.equal(since, from, off, buf)
	}
	return err
}

// ranges applies do to each segment of a discard or write-zeroes request.
func (b *Block) ranges(c *Chain, do func(off, n int64) error) error {
	n := c.ReadLen()
	if n == 0 || n%rangeBytes != 0 || n > maxRangeSegments*rangeBytes {
		return errRange
	}
	for range n / rangeBytes {
		var r [rangeBytes]byte
		if err := c.Read(r[:]); err != nil {
			return err
		}
		sector, count := binary.LittleEndian.Uint64(r[:]), uint64(binary.LittleEndian.Uint32(r[8:]))
		if sectors := uint64(b.disk.Size()) / SectorBytes; count > maxRangeSectors || sector > sectors || count > sectors-sector {
			return errRange
		}
		off, length := int64(sector)*SectorBytes, int64(count)*SectorBytes
		if _, _, err := b.changing(off, length, func() error { return do(off, length) }); err != nil {
			return err
		}
	}
	return nil
}

// fileDisk is a raw image in a file.
type fileDisk struct {
	*os.File
	size int64
}

// OpenDisk opens a raw image. Its length in whole sectors is the disk's size.
func OpenDisk(path string, readOnly bool) (Disk, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return FileDisk(f)
}

// FileDisk makes a disk of an open raw image, which it closes with the disk, or now if it cannot be one.
func FileDisk(f *os.File) (Disk, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size < SectorBytes {
		err = fmt.Errorf("%s has %d bytes: too small for a disk", f.Name(), size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("disk: %w", err)
	}
	return &fileDisk{f, size - size%SectorBytes}, nil
}

func (d *fileDisk) Size() int64 { return d.size }

func (d *fileDisk) Sync() error { return unix.Fdatasync(int(d.Fd())) }

// Discard punches a hole. A file system that cannot is no error: the space is only not given back.
func (d *fileDisk) Discard(off, n int64) error {
	err := d.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Zero zeroes a range, by hand where the file system cannot.
func (d *fileDisk) Zero(off, n int64) error {
	err := d.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, 1<<20)
	for n > 0 {
		m := min(n, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

func (d *fileDisk) allocate(mode uint32, off, n int64) error {
	for n > 0 {
		err := unix.Fallocate(int(d.Fd()), mode, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}
