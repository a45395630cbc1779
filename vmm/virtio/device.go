package virtio

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/vmm/pci"
)

// The areas of BAR 0.
const (
	commonArea = 0x0000
	isrArea    = 0x1000
	configArea = 0x2000
	notifyArea = 0x3000
	msixArea   = 0x4000
	barBytes   = 0x8000

	notifyMultiplier = 4
)

// Device status bits.
const (
	statusDriverOK   = 4
	statusFeaturesOK = 8
	statusNeedsReset = 64
)

// Features that every device offers.
const (
	featureIndirect = 1 << 28
	featureVersion1 = 1 << 32
)

const noVector = 0xffff

// Backend is what makes a device a disk, a network card, and so on.
type Backend interface {
	// Type is the virtio device ID.
	Type() uint16
	// Features are those offered beyond the common ones.
	Features() uint64
	// Queues are the largest sizes of the device's queues.
	Queues() []uint16
	// Config returns the device-specific configuration as it is now.
	Config() []byte
	// Handle works on queue n, whose driver has notified it: it pops chains until there are none that it can use, and pushes them by h. An error
	// breaks the device. It is called by the queue's goroutine, and never for one queue twice at once.
	Handle(n int, h *Handler) error
	// Reset forgets what the driver had set up. No Handle is under way.
	Reset()
	// Close frees the host's side.
	Close() error
}

// lavish is a Backend that never reads its chains into memory here, so that they may hold more bytes than those of others.
type lavish interface{ maxChainBytes() uint64 }

// attached is a Backend that wants to know its device.
type attached interface{ attach(*Device) }

// Handler is a live queue in the hands of its backend.
type Handler struct {
	*Queue
	Features  uint64 // negotiated
	device    *Device
	interrupt bool
}

// Held tells whether the device is to rest: a backend stops between two chains, and is called again when it may go on.
func (h *Handler) Held() bool { return h.device != nil && h.device.rests() }

// Done gives a chain back to the driver; the interrupt, if one is wanted, follows when the backend returns.
func (h *Handler) Done(c *Chain) error {
	wanted, err := h.Push(c)
	h.interrupt = h.interrupt || wanted
	return err
}

// virtqueue is a queue and what the registers know of it.
type virtqueue struct {
	most   uint16
	vector atomic.Uint32
	wake   chan struct{} // of capacity one: notified

	mu      sync.Mutex // protects everything below
	queue   Queue
	enabled bool
}

// Device is a virtio device on the PCI bus. It implements pci.Device.
type Device struct {
	backend  Backend
	most     uint64 // as Queue's
	function *pci.Function
	msix     *pci.MSIX
	memory   Memory
	queues   []*virtqueue
	isr      atomic.Uint32
	stopped  chan struct{}
	running  sync.WaitGroup
	broken   atomic.Uint64 // how often the driver broke the rules
	held     atomic.Bool   // no chain is taken
	paused   atomic.Bool   // the same, for another reason
	ending   atomic.Bool   // the same, while the device is reset, and once it is closed

	mu             sync.Mutex // protects everything below
	status         byte
	featureSelect  uint32
	driverSelect   uint32
	driverFeatures uint64
	queueSelect    uint16
	configVector   uint16
	live           bool
}

// New makes a device of a backend and adds it to the bus.
func New(root *pci.Root, memory Memory, signal pci.Signal, backend Backend) (*Device, error) {
	d := &Device{backend: backend, memory: memory, stopped: make(chan struct{}), configVector: noVector}
	for _, most := range backend.Queues() {
		q := &virtqueue{most: most, wake: make(chan struct{}, 1)}
		q.vector.Store(noVector)
		d.queues = append(d.queues, q)
	}
	if b, ok := backend.(lavish); ok {
		d.most = b.maxChainBytes()
	}
	d.function = newFunction(backend.Type(), d)
	d.msix = d.function.AddMSIX(len(d.queues)+1, msixArea, signal)
	d.resetQueues()
	if err := root.Add(d.function); err != nil {
		return nil, err
	}
	if b, ok := backend.(attached); ok {
		b.attach(d)
	}
	for i, q := range d.queues {
		d.running.Add(1)
		go d.serve(i, q)
	}
	return d, nil
}

// classes are the PCI classes of device types, for people who look at lspci.
var classes = map[uint16]uint32{1: 0x020000, 2: 0x010000, 3: 0x078000}

func newFunction(kind uint16, device pci.Device) *pci.Function {
	class, ok := classes[kind]
	if !ok {
		class = 0xff0000
	}
	const redHat, modernBase = 0x1af4, 0x1040
	f := pci.NewFunction(pci.ID{Vendor: redHat, Device: modernBase + kind, SubVendor: redHat, SubDevice: modernBase + kind, Class: class, Revision: 1}, device)
	f.SetBAR(barBytes)
	const common, notify, isr, config = 1, 2, 3, 4
	for _, c := range []struct {
		kind         byte
		offset, size uint32
	}{{common, commonArea, 0x38}, {isr, isrArea, 4}, {config, configArea, 0x1000}, {notify, notifyArea, 0x1000}} {
		const capVendor, headBytes = 0x09, 16
		body := make([]byte, headBytes-2, headBytes+2)
		body[0], body[1] = headBytes, c.kind
		if c.kind == notify {
			body[0] += 4
			body = binary.LittleEndian.AppendUint32(body, notifyMultiplier)
		}
		binary.LittleEndian.PutUint32(body[6:], c.offset)
		binary.LittleEndian.PutUint32(body[10:], c.size)
		f.AddCapability(capVendor, body, nil)
	}
	return f
}

// Function is the device's PCI function.
func (d *Device) Function() *pci.Function { return d.function }

// Broken is how often the driver broke the rules.
func (d *Device) Broken() uint64 { return d.broken.Load() }

// Wake makes queue n be looked at, as if its driver had notified it: something has arrived for the guest. Any thread may call it.
func (d *Device) Wake(n int) {
	select {
	case d.queues[n].wake <- struct{}{}:
	default:
	}
}

// serve is a queue's goroutine.
func (d *Device) serve(n int, q *virtqueue) {
	defer d.running.Done()
	for {
		select {
		case <-d.stopped:
			return
		case <-q.wake:
		}
		if err := d.handle(n, q); err != nil {
			d.breakDown()
		}
	}
}

// handle lets the backend work on a queue, if it is live.
func (d *Device) handle(n int, q *virtqueue) error {
	d.mu.Lock()
	live, features := d.live, d.driverFeatures
	d.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !live || !q.enabled || d.rests() {
		return nil
	}
	h := &Handler{Queue: &q.queue, Features: features, device: d}
	err := d.backend.Handle(n, h)
	if h.interrupt {
		d.isr.Or(1)
		d.msix.Raise(uint16(q.vector.Load()))
	}
	return err
}

// Hold makes the device rest until Release: no chain is taken any more. When it returns true none is being worked on either; a chain that waits for guest
// memory keeps it waiting, unless over says that the device need not rest any more. Registers still answer.
func (d *Device) Hold(over func() bool) bool {
	d.held.Store(true)
	for _, q := range d.queues {
		if !q.restUnless(over) {
			return false
		}
	}
	return true
}

// Pause lets the device take no chain any more, whether or not it is held besides, or go on. AwaitRest waits until none is being worked on either.
func (d *Device) Pause(on bool) {
	d.paused.Store(on)
	for i := range d.queues {
		if !on {
			d.Wake(i)
		}
	}
}

// AwaitRest waits until nobody works on the queues of a device that is paused; as Hold, unless over says that it need not rest any more.
func (d *Device) AwaitRest(over func() bool) bool {
	for _, q := range d.queues {
		if !q.restUnless(over) {
			return false
		}
	}
	return true
}

// rests tells whether no chain may be taken.
func (d *Device) rests() bool { return d.held.Load() || d.paused.Load() || d.ending.Load() }

// restEvery is how often a wait for a queue looks whether it is still wanted.
const restEvery = 20 * time.Microsecond

// restUnless waits until nobody works on the queue, or, with false, until over says so; whoever works on it sees held or paused before the next chain.
func (q *virtqueue) restUnless(over func() bool) bool {
	for !q.mu.TryLock() {
		if over() {
			return false
		}
		time.Sleep(restEvery)
	}
	q.mu.Unlock()
	return true
}

// Release ends a Hold.
func (d *Device) Release() {
	d.held.Store(false)
	for i := range d.queues {
		d.Wake(i)
	}
}

// breakDown ends the device until the driver resets it.
func (d *Device) breakDown() {
	d.broken.Add(1)
	d.mu.Lock()
	d.live = false
	d.status |= statusNeedsReset
	vector := d.configVector
	d.mu.Unlock()
	d.isr.Or(2)
	d.msix.Raise(vector)
}

// Changed tells the driver that the device's configuration has changed.
func (d *Device) Changed() {
	d.mu.Lock()
	vector, live := d.configVector, d.live
	d.mu.Unlock()
	if live {
		d.isr.Or(2)
		d.msix.Raise(vector)
	}
}

// ResetFunction implements pci.Device.
func (d *Device) ResetFunction() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reset()
}

// reset requires mu. It waits for the queues to rest.
func (d *Device) reset() {
	d.live = false
	d.ending.Store(true)
	defer d.ending.Store(false)
	d.status, d.featureSelect, d.driverSelect, d.driverFeatures, d.queueSelect, d.configVector = 0, 0, 0, 0, 0, noVector
	d.isr.Store(0)
	d.resetQueues()
	d.backend.Reset()
}

func (d *Device) resetQueues() {
	for _, q := range d.queues {
		q.mu.Lock()
		q.queue, q.enabled = Queue{memory: d.memory, size: q.most, most: d.most}, false
		q.vector.Store(noVector)
		q.mu.Unlock()
	}
}

// Close ends the device's goroutines and frees the backend.
func (d *Device) Close() error {
	d.mu.Lock()
	d.live = false
	d.mu.Unlock()
	d.ending.Store(true)
	close(d.stopped)
	d.running.Wait()
	return d.backend.Close()
}

// State is what a device carries when its VM moves, its PCI function apart.
type State struct {
	Status                      byte
	FeatureSelect, DriverSelect uint32
	Features                    uint64
	QueueSelect, ConfigVector   uint16
	ISR                         uint32
	Queues                      []QueueState
}

// State captures the device once its queues rest. Its vCPUs must be out of the guest. What the driver has made available and the device has not
// taken yet is found again by the one that goes on.
func (d *Device) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{d.status, d.featureSelect, d.driverSelect, d.driverFeatures, d.queueSelect, d.configVector, d.isr.Load(), nil}
	for _, q := range d.queues {
		q.mu.Lock()
		s.Queues = append(s.Queues, QueueState{q.queue.size, q.queue.desc, q.queue.avail, q.queue.used, q.queue.nextAvail, q.queue.nextUsed, uint16(q.vector.Load()), q.enabled})
		q.mu.Unlock()
	}
	return s
}

// SetState makes the device what the captured one, of the same kind, was, and lets it go on.
func (d *Device) SetState(s State) error {
	if len(s.Queues) != len(d.queues) {
		return fmt.Errorf("virtio device state has %d queues, want %d", len(s.Queues), len(d.queues))
	}
	d.mu.Lock()
	d.reset()
	d.status, d.featureSelect, d.driverSelect, d.driverFeatures = s.Status, s.FeatureSelect, s.DriverSelect, s.Features
	d.queueSelect, d.configVector = s.QueueSelect, s.ConfigVector
	d.isr.Store(s.ISR)
	for i, from := range s.Queues {
		q := d.queues[i]
		q.mu.Lock()
		q.queue = Queue{memory: d.memory, most: d.most, size: from.Size, desc: from.Desc, avail: from.Avail, used: from.Used, nextAvail: from.NextAvail, nextUsed: from.NextUsed}
		q.enabled = from.Enabled && q.queue.check(q.most) == nil
		q.vector.Store(uint32(from.Vector))
		q.mu.Unlock()
	}
	d.live = s.Status&statusDriverOK != 0 && s.Status&statusNeedsReset == 0
	d.mu.Unlock()
	for i := range d.queues {
		d.Wake(i)
	}
	return nil
}
