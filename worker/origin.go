package worker

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// An origin is what a vCPU begins a life with: the payload's first registers, or what a checkpoint captured. Its first byte tells which:
//
//	originStart  seven registers of 8 bytes
//	originState  8 bytes: number of the vCPU's last device request; then the encoded kvm.VCPUState
const (
	originStart = 1
	originState = 2
	originMoved = 4 // as originState, with the time for which it still idles, in microseconds, 8 bytes, before the state
)

const startBytes = 7 * 8

func encodeStart(s kvm.Start) []byte {
	b := make([]byte, 1, 1+startBytes)
	b[0] = originStart
	for _, v := range []uint64{s.RIP, s.RSP, s.RDI, s.RSI, s.RDX, s.RCX, s.CR3} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeStart(b []byte) (kvm.Start, error) {
	if len(b) != 1+startBytes || b[0] != originStart {
		return kvm.Start{}, fmt.Errorf("first registers of %d bytes, want %d", len(b), 1+startBytes)
	}
	var s kvm.Start
	for i, v := range []*uint64{&s.RIP, &s.RSP, &s.RDI, &s.RSI, &s.RDX, &s.RCX, &s.CR3} {
		*v = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	return s, nil
}

// capture encodes the vCPU as an origin. The guard must hold it.
func (v *vcpu) capture() ([]byte, error) {
	state, err := v.cpu.State()
	if err != nil {
		return nil, err
	}
	encoded, err := state.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", v.cpu.ID(), err)
	}
	b := make([]byte, 1, 1+8+len(encoded))
	b[0] = originState
	b = binary.LittleEndian.AppendUint64(b, v.deviceSeq)
	return append(b, encoded...), nil
}

// captureMoving encodes a vCPU that goes to another part. It runs on the vCPU's thread.
func (w *Worker) captureMoving(v *vcpu) ([]byte, error) {
	if v.seat != nil {
		return w.captureSeat(v)
	}
	origin, err := v.capture()
	if err != nil {
		return nil, err
	}
	left := uint64(0)
	if !v.idleTill.IsZero() {
		left = uint64(max(0, time.Until(v.idleTill).Microseconds()))
	}
	b := append(make([]byte, 0, len(origin)+8), originMoved)
	b = append(b, origin[1:9]...)
	b = binary.LittleEndian.AppendUint64(b, left)
	return append(b, origin[9:]...), nil
}

// begin makes the vCPU what the origin says. It runs on the vCPU's thread.
func (v *vcpu) begin(origin []byte) error {
	v.idleTill, v.tsc = time.Time{}, 0
	if len(origin) > 0 && origin[0] == originStart {
		start, err := decodeStart(origin)
		if err != nil {
			return err
		}
		return v.start(start)
	}
	head := 9
	if len(origin) > 0 && origin[0] == originMoved {
		head += 8
	}
	if len(origin) < head || origin[0] != originState && origin[0] != originMoved {
		return fmt.Errorf("no origin of a vCPU: %d bytes", len(origin))
	}
	var state kvm.VCPUState
	if err := state.UnmarshalBinary(origin[head:]); err != nil {
		return err
	}
	if origin[0] == originMoved {
		v.tsc, _ = state.TSC()
		if left := binary.LittleEndian.Uint64(origin[9:]); left > 0 {
			v.idleTill = time.Now().Add(time.Duration(left)*time.Microsecond - time.Duration(bootMicros()-v.at)*time.Microsecond)
		}
	}
	if err := v.keepReset(); err != nil {
		return err
	}
	v.deviceSeq = binary.LittleEndian.Uint64(origin[1:])
	return v.cpu.SetState(&state)
}
