package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/wire"
)

// How long one attempt of a device request may take, and what lies between two attempts. A request is repeated until the home part answers
// or the VM ends here: the vCPU has nothing else to do, and the home does a repeated one once.
const (
	deviceDeadline = 500 * time.Millisecond
	deviceBackoff  = 5 * time.Millisecond
)

// atHome tells whether this part holds the VM's devices.
func (w *Worker) atHome() bool { return w.home.Load() != nil }

// device does one operation at the home part for a vCPU of this part, in the vCPU's order.
func (w *Worker) device(v *vcpu, op deviceOp, value uint32) (uint32, error) {
	answer, err := w.request(v, deviceRequest{op: op, value: value})
	return uint32(answer), err
}

// request numbers a request of a vCPU and has home carry it out.
func (w *Worker) request(v *vcpu, r deviceRequest) (uint64, error) {
	v.deviceSeq++
	r.vcpu, r.seq = v.cpu.ID(), v.deviceSeq
	if h := w.home.Load(); h != nil {
		return h.do(r)
	}
	v.alarm.set(0)
	answer, err := w.askHome(v.life, r, &v.asking)
	if err != nil {
		return 0, err
	}
	if len(answer) != 8 {
		return 0, fmt.Errorf("home answered device request with %d bytes, want 8", len(answer))
	}
	return binary.LittleEndian.Uint64(answer), nil
}

// loadVCPU gives a vCPU the state that it begins its life with, which home knows.
func (w *Worker) loadVCPU(v *vcpu, life uint64) error {
	if w.linux != nil {
		return w.beginLinux(v, life)
	}
	var origin []byte
	var err error
	if h := w.home.Load(); h != nil {
		origin, err = h.origin(w.ctx, v.cpu.ID())
	} else {
		origin, err = w.askHome(life, deviceRequest{vcpu: v.cpu.ID(), op: opOrigin}, &v.asking)
	}
	if err != nil {
		return err
	}
	return v.begin(origin)
}

// askHome repeats a request until the home part has answered it, has no more to say, or the life ends that it was made in.
// silent is set while home cannot be reached.
func (w *Worker) askHome(life uint64, r deviceRequest, silent *atomic.Bool) ([]byte, error) {
	defer silent.Store(false)
	var buf [deviceRequestBytes + machine.AccessBytes]byte
	body := r.encode(buf[:0])
	for {
		if w.guard.lifeNow.Load() != life || w.guard.restarting.Load() {
			return nil, errNewLife
		}
		m := w.members.Load()
		answer, status, err := w.plane.pages.Request(m.Home, m.Epoch, wire.DeviceGeneric, body, time.Now().Add(w.patient(deviceDeadline)))
		switch {
		case err == nil && status == wire.DeviceOK:
			return answer, nil
		case err == nil && status == wire.DeviceBad:
			return nil, fmt.Errorf("home refused operation %d of vCPU %d", r.op, r.vcpu)
		case errors.Is(err, link.ErrClosed):
			return nil, errEnded
		}
		silent.Store(err != nil)
		// Home does not answer, is not ready or has ended: the next members or a stop from serve will tell.
		select {
		case <-w.ctx.Done():
			return nil, errEnded
		case <-time.After(deviceBackoff):
		}
	}
}

// HandleDevice implements link.PagesHandler: a vCPU of another part wants something of the devices here.
//
// The epoch was in force when the request was read, and may be over by now. Home is looked up before the members: whoever finds a new home finds its
// members too.
func (w *Worker) HandleDevice(from ident.Part, epoch ident.Epoch, req link.DeviceRequest) {
	r, err := decodeDeviceRequest(req.Payload)
	r.epoch = epoch
	h, m := w.home.Load(), w.members.Load()
	switch {
	case m != nil && epoch < m.Epoch:
		req.Reply(wire.DeviceNotReady, nil)
	case req.Kind == wire.DeviceVCPU && w.guard.mayAct():
		w.handleVCPU(req)
	case req.Kind == wire.DeviceVCPU:
		req.Reply(wire.DeviceNotReady, nil)
	case err != nil || req.Kind != wire.DeviceGeneric:
		req.Reply(wire.DeviceBad, nil)
	case r.op == opCounter:
		w.replyCounter(req)
	case r.op == opWaits:
		w.hearWaits(from, r.notes)
		req.Reply(wire.DeviceOK, nil)
	case r.op == opNotes && !w.guard.mayAct():
		req.Reply(wire.DeviceNotReady, nil)
	case r.op == opNotes:
		w.replyNotes(from, r, req)
	case h == nil:
		req.Reply(wire.DeviceNotHome, nil)
	case !w.guard.mayAct():
		req.Reply(wire.DeviceNotReady, nil)
	case r.op == opOrigin:
		go w.replyOrigin(h, r.vcpu, req) // waits for the image
	case r.op == opAccess:
		go w.replyDevice(h, r, req) // may wait for a device, which waits for a page that this thread brings
	default:
		w.replyDevice(h, r, req)
	}
}

func (w *Worker) replyDevice(h *home, r deviceRequest, req link.DeviceRequest) {
	value, err := h.do(r)
	switch {
	case err == nil:
		var answer [8]byte
		binary.LittleEndian.PutUint64(answer[:], value)
		req.Reply(wire.DeviceOK, answer[:])
	case errors.Is(err, errEnded):
		req.Reply(wire.DeviceNotReady, nil)
	case errors.Is(err, errBadRequest):
		req.Reply(wire.DeviceBad, nil)
	default:
		req.Reply(wire.DeviceNotReady, nil)
		w.fail(err)
	}
}

func (w *Worker) replyOrigin(h *home, vcpu ident.VCPU, req link.DeviceRequest) {
	ctx, cancel := context.WithTimeout(w.ctx, w.patient(deviceDeadline)/2) // the other side asks again
	defer cancel()
	origin, err := h.origin(ctx, vcpu)
	switch {
	case errors.Is(err, errEnded), errors.Is(err, errNewLife):
		req.Reply(wire.DeviceNotReady, nil)
	case err != nil:
		req.Reply(wire.DeviceBad, nil)
	default:
		req.Reply(wire.DeviceOK, origin)
	}
}
