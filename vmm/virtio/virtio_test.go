package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/vmm/pci"
)

// testMemory is guest memory in a slice.
type testMemory struct {
	mu sync.Mutex
	b  []byte
}

var errOutside = errors.New("not memory")

func (m *testMemory) at(addr uint64, n int) ([]byte, error) {
	if addr > uint64(len(m.b)) || uint64(n) > uint64(len(m.b))-addr {
		return nil, errOutside
	}
	return m.b[addr : addr+uint64(n)], nil
}

func (m *testMemory) ReadAt(b []byte, addr int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, err := m.at(uint64(addr), len(b))
	return copy(b, from), err
}

func (m *testMemory) WriteAt(b []byte, addr int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to, err := m.at(uint64(addr), len(b))
	return copy(to, b), err
}

func (m *testMemory) Load16(addr uint64) (uint16, error) {
	var b [2]byte
	_, err := m.ReadAt(b[:], int64(addr))
	return binary.LittleEndian.Uint16(b[:]), err
}

func (m *testMemory) Store16(addr uint64, v uint16) error {
	_, err := m.WriteAt(binary.LittleEndian.AppendUint16(nil, v), int64(addr))
	return err
}

// The rings of the test's driver, for each queue n at n*ringSpacing.
const (
	testDesc    = 0x0000
	testAvail   = 0x4000
	testUsed    = 0x5000
	ringSpacing = 0x8000
	testBuffers = 0x40000
	memoryBytes = 1 << 20
)

// driver is a well-behaved driver of a device under test.
type driver struct {
	t      *testing.T
	memory *testMemory
	device *Device
	raised chan uint32
	next   [8]uint16 // available index of each queue
	seen   [8]uint16 // used index
}

func newDriver(t *testing.T, backend Backend) *driver {
	t.Helper()
	d := &driver{t: t, memory: &testMemory{b: make([]byte, memoryBytes)}, raised: make(chan uint32, 1024)}
	root := pci.NewRoot(0xc0000000, 0xd0000000)
	var err error
	d.device, err = New(root, d.memory, func(_ uint64, data uint32) { d.raised <- data }, backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.device.Close() })
	// Enable MSI-X and memory decoding, unmask all vectors: data is the vector's number.
	const enableAll = 1 << 15
	msix := d.findCapability(root, 0x11)
	root.Out(pci.AddressPort, 4, 1<<31|1<<11|uint32(msix&^3))
	root.Out(pci.DataPort+2, 2, enableAll)
	for v := range d.device.msix.Vectors() {
		at := uint64(0xc0000000) + msixArea + uint64(v)*16
		root.Out(pci.AddressPort, 4, 1<<31|1<<11|4)
		root.Out(pci.DataPort, 2, 2)
		root.Write(at, 8, 0xfee00000)
		root.Write(at+8, 8, uint64(v))
	}
	return d
}

func (d *driver) findCapability(root *pci.Root, want byte) int {
	read := func(at int) byte {
		root.Out(pci.AddressPort, 4, 1<<31|1<<11|uint32(at&^3))
		return byte(root.In(pci.DataPort+uint16(at&3), 1))
	}
	for at := int(read(0x34)); at != 0; at = int(read(at + 1)) {
		if read(at) == want {
			return at
		}
	}
	d.t.Fatalf("no capability 0x%x", want)
	return 0
}

// start negotiates and sets the queues up.
func (d *driver) start(features uint64) {
	w := func(offset uint64, size int, v uint64) { d.device.WriteBAR(offset, size, v) }
	w(regStatus, 1, 0)
	w(regStatus, 1, 3)
	for i := range uint64(2) {
		w(regDriverFeatureSelect, 4, i)
		w(regDriverFeature, 4, (features|featureVersion1)>>(32*i)&0xffffffff)
	}
	w(regStatus, 1, 11)
	if d.device.ReadBAR(regStatus, 1)&statusFeaturesOK == 0 {
		d.t.Fatal("features refused")
	}
	for n := range d.device.queues {
		base := uint64(n) * ringSpacing
		w(regQueueSelect, 2, uint64(n))
		w(regQueueSize, 2, 16)
		w(regQueueVector, 2, uint64(n+1))
		w(regQueueDesc, 4, base+testDesc)
		w(regQueueDriver, 4, base+testAvail)
		w(regQueueDevice, 4, base+testUsed)
		w(regQueueEnable, 2, 1)
	}
	w(regConfigVector, 2, 0)
	w(regStatus, 1, 15)
	d.next, d.seen = [8]uint16{}, [8]uint16{}
}

// offer makes a chain of readable and writable buffers available on queue n and notifies.
func (d *driver) offer(n int, readable [][]byte, writable ...int) (buffers []uint64) {
	d.t.Helper()
	base := uint64(n) * ringSpacing
	at, index := uint64(testBuffers), uint16(0)
	total := len(readable) + len(writable)
	put := func(length int, flags uint16) {
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], at)
		binary.LittleEndian.PutUint32(b[8:], uint32(length))
		if int(index) < total-1 {
			flags |= flagNext
		}
		binary.LittleEndian.PutUint16(b[12:], flags)
		binary.LittleEndian.PutUint16(b[14:], index+1)
		d.memory.WriteAt(b[:], int64(base+testDesc+16*uint64(index)))
		buffers = append(buffers, at)
		at += uint64(length)
		index++
	}
	for _, r := range readable {
		d.memory.WriteAt(r, int64(at))
		put(len(r), 0)
	}
	for _, n := range writable {
		put(n, flagWrite)
	}
	d.memory.Store16(base+testAvail+4+2*uint64(d.next[n]%16), 0)
	d.next[n]++
	d.memory.Store16(base+testAvail+2, d.next[n])
	d.device.WriteBAR(notifyArea+uint64(n)*notifyMultiplier, 2, uint64(n))
	return buffers
}

// wait waits for queue n's interrupt and returns how much was written into the chain.
func (d *driver) wait(n int) uint32 {
	d.t.Helper()
	for {
		select {
		case vector := <-d.raised:
			if vector == 0 {
				d.t.Fatalf("configuration interrupt, status 0x%x", d.device.ReadBAR(regStatus, 1))
			}
			base := uint64(n) * ringSpacing
			idx, _ := d.memory.Load16(base + testUsed + 2)
			if int(vector) != n+1 || idx == d.seen[n] {
				continue
			}
			var b [8]byte
			d.memory.ReadAt(b[:], int64(base+testUsed+4+8*uint64(d.seen[n]%16)))
			d.seen[n]++
			return binary.LittleEndian.Uint32(b[4:])
		case <-time.After(time.Minute):
			d.t.Fatalf("no interrupt, status 0x%x", d.device.ReadBAR(regStatus, 1))
		}
	}
}

func (d *driver) bytes(addr uint64, n int) []byte {
	b := make([]byte, n)
	if _, err := d.memory.ReadAt(b, int64(addr)); err != nil {
		d.t.Fatal(err)
	}
	return b
}

func blockHeader(kind uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, sector)
}

func testDisk(t *testing.T, size int64) (Disk, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	disk, err := OpenDisk(path, false)
	if err != nil {
		t.Fatal(err)
	}
	return disk, path
}

func TestBlockReadsWhatWasWritten(t *testing.T) {
	disk, path := testDisk(t, 1<<20)
	d := newDriver(t, NewBlock(disk, "serial-1", false, 2))
	d.start(blockFlushable | blockDiscards | blockZeroes)
	data := bytes.Repeat([]byte("cell"), 256)

	for queue := range 2 { // both queues lead to the same disk
		at := d.offer(queue, [][]byte{blockHeader(blockOut, 7), data[:600], data[600:]}, 1)
		d.wait(queue)
		if status := d.bytes(at[3], 1)[0]; status != blockOK {
			t.Fatalf("write: status %d", status)
		}
		at = d.offer(queue, [][]byte{blockHeader(blockIn, 7)}, 100, 924, 1)
		if n := d.wait(queue); n != 1025 {
			t.Errorf("read wrote %d bytes", n)
		}
		if !bytes.Equal(d.bytes(at[1], 1024), data) || d.bytes(at[3], 1)[0] != blockOK {
			t.Error("read back something else")
		}
	}
	onDisk, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(onDisk[7*512:][:1024], data) {
		t.Errorf("the image has something else at sector 7 (%v)", err)
	}

	zeroes := binary.LittleEndian.AppendUint64(nil, 8)
	zeroes = binary.LittleEndian.AppendUint32(zeroes, 1)
	zeroes = binary.LittleEndian.AppendUint32(zeroes, 0)
	at := d.offer(0, [][]byte{blockHeader(blockWriteZeroes, 0), zeroes}, 1)
	d.wait(0)
	if status := d.bytes(at[2], 1)[0]; status != blockOK {
		t.Fatalf("write zeroes: status %d", status)
	}
	onDisk, _ = os.ReadFile(path)
	if !bytes.Equal(onDisk[7*512:][:512], data[:512]) || !bytes.Equal(onDisk[8*512:][:512], make([]byte, 512)) {
		t.Error("write zeroes cleared something else than sector 8")
	}

	for name, c := range map[string]struct {
		readable [][]byte
		want     byte
	}{
		"flush":          {[][]byte{blockHeader(blockFlush, 0)}, blockOK},
		"beyond the end": {[][]byte{blockHeader(blockOut, 2047), data}, blockError},
		"huge sector":    {[][]byte{blockHeader(blockOut, 1<<63), data}, blockError},
		"half a sector":  {[][]byte{blockHeader(blockOut, 0), data[:100]}, blockError},
		"unknown":        {[][]byte{blockHeader(99, 0)}, blockUnsupported},
	} {
		at := d.offer(0, c.readable, 1)
		d.wait(0)
		if status := d.bytes(at[len(at)-1], 1)[0]; status != c.want {
			t.Errorf("%s: status %d, want %d", name, status, c.want)
		}
	}
	if d.device.Broken() != 0 {
		t.Error("requests that merely fail broke the device")
	}
}

func TestBrokenDeviceWorksAfterReset(t *testing.T) {
	disk, _ := testDisk(t, 1<<20)
	d := newDriver(t, NewBlock(disk, "", false, 1))
	d.start(0)
	d.offer(0, [][]byte{{1, 2, 3}}, 1) // a header of three bytes
	select {
	case vector := <-d.raised:
		if vector != 0 {
			t.Fatalf("vector %d, want the configuration's", vector)
		}
	case <-time.After(time.Minute):
		t.Fatal("no configuration interrupt")
	}
	if s := d.device.ReadBAR(regStatus, 1); s&statusNeedsReset == 0 {
		t.Fatalf("status 0x%x does not ask for a reset", s)
	}
	d.start(0)
	d.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
	d.wait(0)
}

func TestStateMovesADevice(t *testing.T) {
	disk, path := testDisk(t, 1<<20)
	d := newDriver(t, NewBlock(disk, "", false, 1))
	d.start(0)
	for range 20 { // more than the ring has entries
		d.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
		d.wait(0)
	}
	state, function := d.device.State(), d.device.Function().State()
	other, err := OpenDisk(path, false)
	if err != nil {
		t.Fatal(err)
	}
	e := newDriver(t, NewBlock(other, "", false, 1))
	e.memory, e.next, e.seen = d.memory, d.next, d.seen
	e.device.memory = d.memory
	if err := e.device.Function().SetState(function); err != nil {
		t.Fatal(err)
	}
	if err := e.device.SetState(state); err != nil {
		t.Fatal(err)
	}
	e.offer(0, [][]byte{blockHeader(blockFlush, 0)}, 1)
	e.wait(0)
}

// loop is a link that sends every frame back.
type loop struct{ deliver func([]byte) }

func (l *loop) Send(frame []byte) { l.deliver(bytes.Clone(frame)) }
func (l *loop) Close() error      { return nil }

func TestNetSendsAndReceives(t *testing.T) {
	link := &loop{}
	card := NewNet(MAC{2, 0, 0, 0, 0, 1}, link)
	d := newDriver(t, card)
	link.deliver = func(frame []byte) { card.Deliver(frame); d.device.Wake(netReceive) }
	d.start(netMAC)
	frame := bytes.Repeat([]byte{0xab}, 200)
	d.offer(netTransmit, [][]byte{make([]byte, netHeaderBytes), frame})
	d.wait(netTransmit)
	at := d.offer(netReceive, nil, 2000)
	if n := d.wait(netReceive); n != netHeaderBytes+200 {
		t.Errorf("received %d bytes", n)
	}
	if !bytes.Equal(d.bytes(at[0]+netHeaderBytes, 200), frame) {
		t.Error("another frame came back")
	}
}

func TestConsoleAndEntropy(t *testing.T) {
	var out bytes.Buffer
	c := NewConsole(&out)
	d := newDriver(t, c)
	d.start(0)
	d.offer(consoleTransmit, [][]byte{[]byte("hello")})
	d.wait(consoleTransmit)
	if out.String() != "hello" {
		t.Errorf("printed %q", out.String())
	}
	at := d.offer(consoleReceive, nil, 64)
	c.Receive([]byte("typed"))
	d.device.Wake(consoleReceive)
	if n := d.wait(consoleReceive); n != 5 || string(d.bytes(at[0], 5)) != "typed" {
		t.Errorf("received %d bytes", n)
	}
	e := newDriver(t, Entropy{})
	e.start(0)
	at = e.offer(0, nil, 64)
	if n := e.wait(0); n != 64 || bytes.Equal(e.bytes(at[0], 64), make([]byte, 64)) {
		t.Errorf("%d random bytes", n)
	}
}

// TestBalloonGivesBack reports free pages and puts others into the balloon.
func TestBalloonGivesBack(t *testing.T) {
	type piece struct{ addr, n uint64 }
	got := make(chan piece, 8)
	b := NewBalloon(func(addr, n uint64) error { got <- piece{addr, n}; return nil })
	d := newDriver(t, b)
	d.start(balloonReporting)
	at := d.offer(2, nil, 3*balloonPage)
	d.wait(2)
	first := (at[0] + balloonPage - 1) &^ (balloonPage - 1)
	if p := <-got; p.addr != first || p.n != (at[0]+3*balloonPage)&^(balloonPage-1)-first {
		t.Fatalf("gave %d bytes at 0x%x back", p.n, p.addr)
	}
	// As many blocks of 4 MiB at once as Linux reports: more than another device's chain may hold.
	const block, blocks = 4 << 20, 16 // a ring of 16; Linux has larger ones
	sizes := make([]int, blocks)
	for i := range sizes {
		sizes[i] = 2 * block
	}
	at = d.offer(2, nil, sizes...)
	for i := range blocks {
		if p := <-got; p.addr < at[i] || p.n < block {
			t.Fatalf("gave %d bytes at 0x%x back, for a block at 0x%x", p.n, p.addr, at[i])
		}
	}
	d.wait(2)
	d.offer(0, [][]byte{{7, 0, 0, 0, 9, 0, 0, 0}})
	d.wait(0)
	if p, q := <-got, <-got; p != (piece{7 * balloonPage, balloonPage}) || q != (piece{9 * balloonPage, balloonPage}) {
		t.Fatalf("gave %+v and %+v back", p, q)
	}
	if b.Freed() == 0 {
		t.Error("nothing counted")
	}
}

// FuzzQueue lets a hostile driver write whatever it likes into rings and registers. The device may break, never the process; and what is
// broken works again after a reset.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0}, uint16(1), uint8(0), uint64(0), uint16(16))
	f.Add(bytes.Repeat([]byte{0xff}, 64), uint16(0xffff), uint8(1), uint64(memoryBytes-8), uint16(3))
	f.Add([]byte{0, 0, 4, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, uint16(16), uint8(2), ^uint64(0)-15, uint16(1024))
	f.Add([]byte{0, 0x10, 4, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 2, 0, 0, 0}, uint16(4), uint8(4), uint64(0), uint16(16))
	f.Fuzz(func(t *testing.T, rings []byte, available uint16, which uint8, ring uint64, size uint16) {
		memory := &testMemory{b: make([]byte, memoryBytes)}
		for at := 0; at < 0x10000 && len(rings) > 0; at += len(rings) {
			copy(memory.b[at:0x10000], rings)
		}
		binary.LittleEndian.PutUint16(memory.b[testAvail+2:], available)
		backend := hostileBackend(t, which)
		defer backend.Close()
		q := Queue{memory: memory, size: size, desc: testDesc, avail: testAvail, used: testUsed}
		switch which >> 4 & 3 {
		case 1:
			q.desc = ring
		case 2:
			q.avail = ring
		case 3:
			q.used = ring
		}
		if q.check(maxQueueSize) != nil {
			return
		}
		for n := range backend.Queues() {
			once := q
			if err := backend.Handle(n, &Handler{Queue: &once}); err != nil && !errors.Is(err, errBroken) {
				t.Fatalf("an error that is not the driver's: %v", err)
			}
			if once.popped < 0 {
				t.Fatal("more chains given back than taken")
			}
		}
	})
}

func hostileBackend(t *testing.T, which uint8) Backend {
	switch which & 7 {
	case 4, 5:
		return NewBalloon(func(addr, n uint64) error {
			if addr%balloonPage != 0 || n%balloonPage != 0 || n == 0 || addr+n < addr {
				t.Fatalf("gave %d bytes at 0x%x back", n, addr)
			}
			return nil
		})
	case 0:
		return NewBlock(memoryDisk(make([]byte, 1<<16)), "", false, 1)
	case 1:
		return NewNet(MAC{}, &loop{func([]byte) {}})
	case 2:
		c := NewConsole(&bytes.Buffer{})
		c.Receive([]byte("typed"))
		return c
	}
	return Entropy{}
}

type memoryDisk []byte

func (m memoryDisk) ReadAt(b []byte, off int64) (int, error)  { return copy(b, m[off:]), nil }
func (m memoryDisk) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }
func (m memoryDisk) Size() int64                              { return int64(len(m)) }
func (m memoryDisk) Sync() error                              { return nil }
func (m memoryDisk) Close() error                             { return nil }

func (m memoryDisk) Discard(off, n int64) error { return m.Zero(off, n) }

func (m memoryDisk) Zero(off, n int64) error {
	if off+n > int64(len(m)) {
		return fmt.Errorf("zero outside the disk: %d+%d", off, n)
	}
	clear(m[off : off+n])
	return nil
}

// FuzzRegisters pokes at BAR 0.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0x14, 0, 1, 15, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		root := pci.NewRoot(0xc0000000, 0xd0000000)
		d, err := New(root, &testMemory{b: make([]byte, memoryBytes)}, func(uint64, uint32) {}, Entropy{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for len(script) >= 8 {
			offset := uint64(binary.LittleEndian.Uint16(script)) % barBytes
			size := 1 << (script[2] & 3)
			v := uint64(binary.LittleEndian.Uint32(script[3:]))
			if script[7]&1 != 0 {
				d.WriteBAR(offset, size, v)
			} else {
				d.ReadBAR(offset, size)
			}
			script = script[8:]
		}
	})
}
