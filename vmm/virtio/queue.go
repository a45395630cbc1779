package virtio

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Memory is guest-physical memory as a device reaches it. Addresses that are not memory are errors. 16-bit accesses are aligned, single, and
// ordered with all others.
type Memory interface {
	io.ReaderAt
	io.WriterAt
	Load16(addr uint64) (uint16, error)
	Store16(addr uint64, value uint16) error
}

// errBroken is wrapped by every error that is the driver's fault.
var errBroken = errors.New("virtio: the driver broke the rules")

const (
	descriptorBytes = 16
	usedBytes       = 8

	flagNext     = 1 << 0
	flagWrite    = 1 << 1
	flagIndirect = 1 << 2

	availNoInterrupt = 1 << 0

	maxQueueSize = 1024
	// maxChainBytes bounds what one chain may hold, so that a request can be read into memory here.
	maxChainBytes = 64 << 20
)

// Queue is a split virtqueue. It belongs to the goroutine that handles it, and to the registers while that rests.
type Queue struct {
	memory Memory
	size   uint16
	desc   uint64
	avail  uint64
	used   uint64

	nextAvail uint16 // the next entry of the available ring to look at
	nextUsed  uint16
	popped    int    // chains taken and not pushed
	most      uint64 // bytes that a chain may hold; 0: maxChainBytes
}

// QueueState is what a queue carries when its VM moves.
type QueueState struct {
	Size                uint16
	Desc, Avail, Used   uint64
	NextAvail, NextUsed uint16
	Vector              uint16
	Enabled             bool
}

// check looks at what the driver configured.
func (q *Queue) check(most uint16) error {
	if q.size == 0 || q.size > most || q.size&(q.size-1) != 0 {
		return fmt.Errorf("%w: queue of %d entries, at most %d and a power of two", errBroken, q.size, most)
	}
	if q.desc%16 != 0 || q.avail%2 != 0 || q.used%4 != 0 {
		return fmt.Errorf("%w: rings at 0x%x, 0x%x, 0x%x are not aligned", errBroken, q.desc, q.avail, q.used)
	}
	n := uint64(q.size)
	for _, part := range [][2]uint64{{q.desc, n * descriptorBytes}, {q.avail, 6 + 2*n}, {q.used, 6 + usedBytes*n}} {
		if part[0]+part[1] < part[0] {
			return fmt.Errorf("%w: ring at 0x%x wraps around", errBroken, part[0])
		}
	}
	return nil
}

// segment is one buffer of a chain.
type segment struct {
	addr   uint64
	length uint32
}

// Chain is one request: buffers to read, then buffers to write.
type Chain struct {
	queue    *Queue
	head     uint16
	readable []segment
	writable []segment
	written  uint32
}

// Pop takes the next chain, or nil if there is none. An error means that the driver broke the rules.
func (q *Queue) Pop() (*Chain, error) {
	published, err := q.memory.Load16(q.avail + 2)
	if err != nil {
		return nil, fmt.Errorf("%w: available ring: %w", errBroken, err)
	}
	waiting := published - q.nextAvail
	if waiting == 0 {
		return nil, nil
	}
	if waiting > q.size || q.popped >= int(q.size) {
		return nil, fmt.Errorf("%w: %d chains available and %d under way in a ring of %d", errBroken, waiting, q.popped, q.size)
	}
	head, err := q.memory.Load16(q.avail + 4 + 2*uint64(q.nextAvail%q.size))
	if err != nil {
		return nil, fmt.Errorf("%w: available ring: %w", errBroken, err)
	}
	c := &Chain{queue: q, head: head}
	if err := c.walk(q.desc, q.size, head, false); err != nil {
		return nil, err
	}
	q.nextAvail++
	q.popped++
	return c, nil
}

// unpop gives back the chain that was popped last, as if it had not been.
func (q *Queue) unpop() {
	q.nextAvail--
	q.popped--
}

// walk collects the descriptors of a table from index on. Each may be visited once, which bounds the walk.
func (c *Chain) walk(table uint64, size, index uint16, indirect bool) error {
	var total uint64
	for left := size; ; left-- {
		if left == 0 || index >= size {
			return fmt.Errorf("%w: descriptor %d of %d, or a loop", errBroken, index, size)
		}
		var b [descriptorBytes]byte
		if _, err := c.queue.memory.ReadAt(b[:], int64(table+uint64(index)*descriptorBytes)); err != nil {
			return fmt.Errorf("%w: descriptor table: %w", errBroken, err)
		}
		le := binary.LittleEndian
		s := segment{le.Uint64(b[:]), le.Uint32(b[8:])}
		flags := le.Uint16(b[12:])
		index = le.Uint16(b[14:])
		if flags&flagIndirect != 0 {
			if indirect || flags&flagNext != 0 {
				return fmt.Errorf("%w: an indirect table inside a chain", errBroken)
			}
			return c.walkIndirect(s)
		}
		if total += uint64(s.length); total > cmp.Or(c.queue.most, maxChainBytes) || s.addr+uint64(s.length) < s.addr {
			return fmt.Errorf("%w: a chain of more than %d bytes", errBroken, cmp.Or(c.queue.most, maxChainBytes))
		}
		switch {
		case flags&flagWrite != 0:
			c.writable = append(c.writable, s)
		case len(c.writable) > 0:
			return fmt.Errorf("%w: a readable buffer behind a writable one", errBroken)
		default:
			c.readable = append(c.readable, s)
		}
		if flags&flagNext == 0 {
			return nil
		}
	}
}

func (c *Chain) walkIndirect(s segment) error {
	if s.length == 0 || s.length%descriptorBytes != 0 || s.length/descriptorBytes > maxQueueSize {
		return fmt.Errorf("%w: an indirect table of %d bytes", errBroken, s.length)
	}
	if len(c.readable)+len(c.writable) > 0 {
		return fmt.Errorf("%w: an indirect table behind buffers", errBroken)
	}
	return c.walk(s.addr, uint16(s.length/descriptorBytes), 0, true)
}

// Push gives a chain back, with the number of bytes written into it. It tells whether the driver wants an interrupt.
func (q *Queue) Push(c *Chain) (bool, error) {
	var b [usedBytes]byte
	binary.LittleEndian.PutUint32(b[:], uint32(c.head))
	binary.LittleEndian.PutUint32(b[4:], c.written)
	if _, err := q.memory.WriteAt(b[:], int64(q.used+4+usedBytes*uint64(q.nextUsed%q.size))); err != nil {
		return false, fmt.Errorf("%w: used ring: %w", errBroken, err)
	}
	q.nextUsed++
	q.popped--
	if err := q.memory.Store16(q.used+2, q.nextUsed); err != nil {
		return false, fmt.Errorf("%w: used ring: %w", errBroken, err)
	}
	flags, err := q.memory.Load16(q.avail)
	if err != nil {
		return false, fmt.Errorf("%w: available ring: %w", errBroken, err)
	}
	return flags&availNoInterrupt == 0, nil
}

// Drop undoes a Pop: the chain stays available.
func (q *Queue) Drop() {
	q.nextAvail--
	q.popped--
}

func length(s []segment) int {
	n := 0
	for _, x := range s {
		n += int(x.length)
	}
	return n
}

// ReadLen is how many bytes the driver has put into the chain.
func (c *Chain) ReadLen() int { return length(c.readable) }

// WriteLen is how many bytes there is room for.
func (c *Chain) WriteLen() int { return length(c.writable) }

// Read fills b with the next bytes of the readable part. Fewer than asked for is an error.
func (c *Chain) Read(b []byte) error {
	for len(b) > 0 {
		if len(c.readable) == 0 {
			return fmt.Errorf("%w: a chain that is too short to read", errBroken)
		}
		s := &c.readable[0]
		n := min(len(b), int(s.length))
		if _, err := c.queue.memory.ReadAt(b[:n], int64(s.addr)); n > 0 && err != nil {
			return fmt.Errorf("%w: buffer: %w", errBroken, err)
		}
		b = b[n:]
		c.readable = advance(c.readable, n)
	}
	return nil
}

// Write puts b into the next bytes of the writable part.
func (c *Chain) Write(b []byte) error {
	for len(b) > 0 {
		if len(c.writable) == 0 {
			return fmt.Errorf("%w: a chain that is too short to write", errBroken)
		}
		s := &c.writable[0]
		n := min(len(b), int(s.length))
		if _, err := c.queue.memory.WriteAt(b[:n], int64(s.addr)); n > 0 && err != nil {
			return fmt.Errorf("%w: buffer: %w", errBroken, err)
		}
		b = b[n:]
		c.written += uint32(n)
		c.writable = advance(c.writable, n)
	}
	return nil
}

func advance(s []segment, n int) []segment {
	s[0].addr += uint64(n)
	s[0].length -= uint32(n)
	if s[0].length == 0 {
		return s[1:]
	}
	return s
}
