package virtio

import "encoding/binary"

// Offsets in the common configuration: virtio 1.2, section 4.1.4.3.
const (
	regDeviceFeatureSelect = 0x00
	regDeviceFeature       = 0x04
	regDriverFeatureSelect = 0x08
	regDriverFeature       = 0x0c
	regConfigVector        = 0x10
	regNumQueues           = 0x12
	regStatus              = 0x14
	regConfigGeneration    = 0x15
	regQueueSelect         = 0x16
	regQueueSize           = 0x18
	regQueueVector         = 0x1a
	regQueueEnable         = 0x1c
	regQueueNotifyOff      = 0x1e
	regQueueDesc           = 0x20
	regQueueDriver         = 0x28
	regQueueDevice         = 0x30
)

// ReadBAR implements pci.Device.
func (d *Device) ReadBAR(offset uint64, size int) uint64 {
	switch {
	case offset < isrArea:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.readCommon(offset)
	case offset == isrArea:
		return uint64(d.isr.Swap(0))
	case offset >= configArea && offset < notifyArea:
		config := d.backend.Config()
		var b [8]byte
		if at := offset - configArea; at < uint64(len(config)) {
			copy(b[:size], config[at:])
		}
		return binary.LittleEndian.Uint64(b[:])
	}
	return 0
}

// readCommon requires mu. Drivers read each field as a whole, as the specification asks.
func (d *Device) readCommon(offset uint64) uint64 {
	switch offset {
	case regDeviceFeatureSelect:
		return uint64(d.featureSelect)
	case regDeviceFeature:
		if d.featureSelect > 1 {
			return 0
		}
		return d.features() >> (32 * d.featureSelect) & 0xffffffff
	case regDriverFeatureSelect:
		return uint64(d.driverSelect)
	case regDriverFeature:
		if d.driverSelect > 1 {
			return 0
		}
		return d.driverFeatures >> (32 * d.driverSelect) & 0xffffffff
	case regConfigVector:
		return uint64(d.configVector)
	case regNumQueues:
		return uint64(len(d.queues))
	case regStatus:
		return uint64(d.status)
	case regQueueSelect:
		return uint64(d.queueSelect)
	}
	if int(d.queueSelect) >= len(d.queues) {
		return 0
	}
	return d.queues[d.queueSelect].read(offset, d.queueSelect)
}

func (q *virtqueue) read(offset uint64, index uint16) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch offset {
	case regQueueSize:
		return uint64(q.queue.size)
	case regQueueVector:
		return uint64(q.vector.Load())
	case regQueueEnable:
		if q.enabled {
			return 1
		}
	case regQueueNotifyOff:
		return uint64(index)
	case regQueueDesc:
		return q.queue.desc & 0xffffffff
	case regQueueDesc + 4:
		return q.queue.desc >> 32
	case regQueueDriver:
		return q.queue.avail & 0xffffffff
	case regQueueDriver + 4:
		return q.queue.avail >> 32
	case regQueueDevice:
		return q.queue.used & 0xffffffff
	case regQueueDevice + 4:
		return q.queue.used >> 32
	}
	return 0
}

func (d *Device) features() uint64 {
	return d.backend.Features() | featureIndirect | featureVersion1
}

// WriteBAR implements pci.Device.
func (d *Device) WriteBAR(offset uint64, size int, v uint64) {
	switch {
	case offset < isrArea:
		d.mu.Lock()
		broken := d.writeCommon(offset, size, v)
		d.mu.Unlock()
		if broken {
			d.breakDown()
		}
	case offset >= notifyArea && offset < msixArea:
		if n := (offset - notifyArea) / notifyMultiplier; n < uint64(len(d.queues)) {
			d.Wake(int(n))
		}
	}
}

// writeCommon requires mu. It reports a driver that broke the rules.
func (d *Device) writeCommon(offset uint64, size int, v uint64) (broken bool) {
	switch offset {
	case regDeviceFeatureSelect:
		d.featureSelect = uint32(v)
	case regDriverFeatureSelect:
		d.driverSelect = uint32(v)
	case regDriverFeature:
		if d.driverSelect <= 1 && d.status&statusFeaturesOK == 0 {
			shift := 32 * d.driverSelect
			d.driverFeatures = d.driverFeatures&^(0xffffffff<<shift) | v&0xffffffff<<shift
		}
	case regConfigVector:
		d.configVector = d.vectorOf(v)
	case regStatus:
		d.writeStatus(byte(v))
	case regQueueSelect:
		d.queueSelect = uint16(v)
	default:
		if int(d.queueSelect) < len(d.queues) {
			return d.writeQueue(d.queues[d.queueSelect], offset, size, v)
		}
	}
	return false
}

// vectorOf is the vector that a driver asks for, or none: what it reads back tells it.
func (d *Device) vectorOf(v uint64) uint16 {
	if v >= uint64(d.msix.Vectors()) {
		return noVector
	}
	return uint16(v)
}

func (d *Device) writeStatus(v byte) {
	if v == 0 {
		d.reset()
		return
	}
	if v&statusFeaturesOK != 0 && d.status&statusFeaturesOK == 0 && (d.driverFeatures&^d.features() != 0 || d.driverFeatures&featureVersion1 == 0) {
		v &^= statusFeaturesOK // refused: the driver looks
	}
	d.status |= v &^ statusNeedsReset
	if d.status&statusDriverOK != 0 && d.status&statusFeaturesOK != 0 && d.status&statusNeedsReset == 0 && !d.live {
		d.live = true
		for i := range d.queues {
			d.Wake(i)
		}
	}
}

func (d *Device) writeQueue(q *virtqueue, offset uint64, size int, v uint64) (broken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if offset == regQueueVector {
		q.vector.Store(uint32(d.vectorOf(v)))
		return false
	}
	if q.enabled {
		return false // what is in use does not change until reset
	}
	set := func(field *uint64, high bool) {
		switch {
		case size == 8 && !high:
			*field = v
		case high:
			*field = *field&0xffffffff | v<<32
		default:
			*field = *field&^0xffffffff | v&0xffffffff
		}
	}
	switch offset {
	case regQueueSize:
		q.queue.size = uint16(v)
	case regQueueEnable:
		if v != 1 {
			return false
		}
		if q.queue.check(q.most) != nil {
			return true
		}
		q.enabled = true
	case regQueueDesc, regQueueDesc + 4:
		set(&q.queue.desc, offset != regQueueDesc)
	case regQueueDriver, regQueueDriver + 4:
		set(&q.queue.avail, offset != regQueueDriver)
	case regQueueDevice, regQueueDevice + 4:
		set(&q.queue.used, offset != regQueueDevice)
	}
	return false
}
