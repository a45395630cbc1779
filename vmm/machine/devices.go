package machine

import (
	"fmt"
	"io"

	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// maxDiskQueues bounds a disk's queues; more than that share.
const maxDiskQueues = 4

func (b *Board) add(backend virtio.Backend) (*virtio.Device, error) {
	d, err := virtio.New(b.PCI, b.memory, b.signal, backend)
	if err != nil {
		return nil, err
	}
	b.virtio = append(b.virtio, d)
	return d, nil
}

// AddDisk adds a block device; the guest sees id, of which 20 bytes are kept, as its serial number. The board closes the disk.
func (b *Board) AddDisk(disk virtio.Disk, id string, readOnly bool) error {
	block := virtio.NewBlock(disk, id, readOnly, min(b.vcpus, maxDiskQueues))
	if p, ok := disk.(virtio.Paired); ok {
		block.SetPairs(p.Pairs())
	}
	_, err := b.add(block)
	return err
}

// AddEntropy adds a source of random numbers.
func (b *Board) AddEntropy() error {
	_, err := b.add(virtio.Entropy{})
	return err
}

// AddBalloon adds the device by which the guest gives memory back.
func (b *Board) AddBalloon() error {
	_, err := b.add(virtio.NewBalloon(b.memory.Free))
	return err
}

// AddConsole adds a virtio console. The function it returns hands the guest what was typed and tells how much there was room for.
func (b *Board) AddConsole(out io.Writer) (func([]byte) int, error) {
	console := virtio.NewConsole(out)
	d, err := b.add(console)
	if err != nil {
		return nil, err
	}
	return func(typed []byte) int {
		n := console.Receive(typed)
		d.Wake(0)
		return n
	}, nil
}

// AddNet adds a network card. connect is told how to deliver frames to the guest and returns the link that the card is plugged into.
func (b *Board) AddNet(mac virtio.MAC, connect func(deliver func(frame []byte) bool) (virtio.Link, error)) error {
	plug := &lateLink{}
	card := virtio.NewNet(mac, plug)
	d, err := b.add(card)
	if err != nil {
		return err
	}
	plug.Link, err = connect(func(frame []byte) bool {
		ok := card.Deliver(frame)
		d.Wake(0)
		return ok
	})
	if err != nil {
		plug.Link = noLink{}
		return fmt.Errorf("network card: %w", err)
	}
	return nil
}

// lateLink is filled in before the guest runs.
type lateLink struct{ virtio.Link }

type noLink struct{}

func (noLink) Send([]byte)  {}
func (noLink) Close() error { return nil }
