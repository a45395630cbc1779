package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/wire"
)

// How long one attempt of a device request may take, and what lies between two attempts. A request is repeated until the home part answers
// or the VM ends here: the vCPU has nothing else to do, and the home does a repeated one once.
const (
	deviceDeadline = 500 * time.Millisecond
	deviceBackoff  = 5 * time.Millisecond
)

// atHome tells whether this part holds the VM's devices.
func (w *Worker) atHome() bool { return w.home != nil }

// device does one operation at the home part for a vCPU of this part, in the vCPU's order.
func (w *Worker) device(v *vcpu, op deviceOp, value uint32) (uint32, error) {
	v.deviceSeq++
	r := deviceRequest{vcpu: v.cpu.ID(), op: op, seq: v.deviceSeq, value: value}
	if w.atHome() {
		return w.home.do(r)
	}
	answer, err := w.askHome(r)
	if err != nil {
		return 0, err
	}
	if len(answer) != 4 {
		return 0, fmt.Errorf("home answered device request with %d bytes, want 4", len(answer))
	}
	return binary.LittleEndian.Uint32(answer), nil
}

// start asks the home part for a vCPU's first registers, which it has once the image is loaded.
func (w *Worker) start(id ident.VCPU) (kvm.Start, error) {
	if w.atHome() {
		return w.home.start(w.ctx, id)
	}
	answer, err := w.askHome(deviceRequest{vcpu: id, op: opStart})
	if err != nil {
		return kvm.Start{}, err
	}
	return decodeStart(answer)
}

// askHome repeats a request until the home part has answered it, or has no more to say.
func (w *Worker) askHome(r deviceRequest) ([]byte, error) {
	var buf [deviceRequestBytes]byte
	body := r.encode(buf[:0])
	for {
		m := w.members.Load()
		answer, status, err := w.plane.pages.Request(m.Home, m.Epoch, wire.DeviceGeneric, body, time.Now().Add(deviceDeadline))
		switch {
		case err == nil && status == wire.DeviceOK:
			return answer, nil
		case err == nil && status == wire.DeviceBad:
			return nil, fmt.Errorf("home refused operation %d of vCPU %d", r.op, r.vcpu)
		case errors.Is(err, link.ErrClosed):
			return nil, errEnded
		}
		// Home does not answer, is not ready or has ended: the next members or a stop from serve will tell.
		select {
		case <-w.ctx.Done():
			return nil, errEnded
		case <-time.After(deviceBackoff):
		}
	}
}

// HandleDevice implements link.PagesHandler: a vCPU of another part wants something of the devices here.
func (w *Worker) HandleDevice(_ ident.Part, _ ident.Epoch, req link.DeviceRequest) {
	r, err := decodeDeviceRequest(req.Payload)
	switch {
	case err != nil || req.Kind != wire.DeviceGeneric:
		req.Reply(wire.DeviceBad, nil)
	case !w.atHome():
		req.Reply(wire.DeviceNotHome, nil)
	case !w.guard.mayAct():
		req.Reply(wire.DeviceNotReady, nil)
	case r.op == opStart:
		go w.replyStart(r.vcpu, req) // waits for the image
	default:
		w.replyDevice(r, req)
	}
}

func (w *Worker) replyDevice(r deviceRequest, req link.DeviceRequest) {
	value, err := w.home.do(r)
	switch {
	case err == nil:
		var answer [4]byte
		binary.LittleEndian.PutUint32(answer[:], value)
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

func (w *Worker) replyStart(vcpu ident.VCPU, req link.DeviceRequest) {
	ctx, cancel := context.WithTimeout(w.ctx, deviceDeadline/2) // the other side asks again
	defer cancel()
	s, err := w.home.start(ctx, vcpu)
	switch {
	case errors.Is(err, errEnded):
		req.Reply(wire.DeviceNotReady, nil)
	case err != nil:
		req.Reply(wire.DeviceBad, nil)
	default:
		req.Reply(wire.DeviceOK, encodeStart(s))
	}
}

const startBytes = 7 * 8

func encodeStart(s kvm.Start) []byte {
	b := make([]byte, 0, startBytes)
	for _, v := range []uint64{s.RIP, s.RSP, s.RDI, s.RSI, s.RDX, s.RCX, s.CR3} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeStart(b []byte) (kvm.Start, error) {
	if len(b) != startBytes {
		return kvm.Start{}, fmt.Errorf("home sent first registers of %d bytes, want %d", len(b), startBytes)
	}
	var s kvm.Start
	for i, v := range []*uint64{&s.RIP, &s.RSP, &s.RDI, &s.RSI, &s.RDX, &s.RCX, &s.CR3} {
		*v = binary.LittleEndian.Uint64(b[8*i:])
	}
	return s, nil
}
