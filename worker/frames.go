package worker

import (
	"bytes"

	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// heldFrames are Ethernet frames of a protected Linux machine. They are output: one that a guest sends may tell others what only the next checkpoint
// knows. So they leave when that is safe. Those of a VM that has a replica only because it moves leave at once: nothing was promised about its loss, and its
// peers would wait for the copy. Frames that are held when home dies are lost, as frames may be.
type heldFrames struct {
	on   bool
	list []heldFrame
	gone uint64 // how many left, or were dropped, from the front
}

type heldFrame struct {
	link  virtio.Link
	frame []byte
}

// heldFramesMost bounds the frames that wait; more are dropped, as by a link that is full.
const heldFramesMost = 8192

// cardLink is where a card of a Linux machine is plugged in, behind what holds its frames.
type cardLink struct {
	virtio.Link
	h *home
}

// Send implements virtio.Link.
func (l cardLink) Send(frame []byte) {
	if !l.h.keepFrame(l.Link, frame) {
		l.Link.Send(frame)
	}
}

// keepFrame holds a frame back, or tells that it may leave.
func (h *home) keepFrame(link virtio.Link, frame []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &h.frames
	switch {
	case h.closed:
	case !f.on:
		return false
	case len(f.list) < heldFramesMost:
		f.list = append(f.list, heldFrame{link, bytes.Clone(frame)})
	}
	return true
}

// holdFrames begins or ends holding frames back. Its end lets all leave.
func (h *home) holdFrames(on bool) {
	h.mu.Lock()
	h.frames.on = on
	var free []heldFrame
	if !on && !h.closed {
		free = h.frames.take(h.frames.end())
	}
	h.mu.Unlock()
	sendFrames(free)
}

// end is the number of the next frame.
func (f *heldFrames) end() uint64 { return f.gone + uint64(len(f.list)) }

// take takes the frames before number upTo off the list.
func (f *heldFrames) take(upTo uint64) []heldFrame {
	if upTo <= f.gone {
		return nil
	}
	n := min(upTo-f.gone, uint64(len(f.list)))
	free := f.list[:n:n]
	f.list, f.gone = f.list[n:], f.gone+n
	return free
}

// sendFrames must be called without locks that a link may want.
func sendFrames(frames []heldFrame) {
	for _, f := range frames {
		f.link.Send(f.frame)
	}
}
