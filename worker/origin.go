package worker

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// An origin is what a vCPU begins a life with: the payload's first registers, or what a checkpoint captured. Its first byte tells which:
//
//	originStart  seven registers of 8 bytes
//	originState  8 bytes: number of the vCPU's last device request; then the encoded kvm.VCPUState
const (
	originStart = 1
	originState = 2
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

// begin makes the vCPU what the origin says. It runs on the vCPU's thread.
func (v *vcpu) begin(origin []byte) error {
	if len(origin) > 0 && origin[0] == originStart {
		start, err := decodeStart(origin)
		if err != nil {
			return err
		}
		return v.start(start)
	}
	if len(origin) < 9 || origin[0] != originState {
		return fmt.Errorf("no origin of a vCPU: %d bytes", len(origin))
	}
	var state kvm.VCPUState
	if err := state.UnmarshalBinary(origin[9:]); err != nil {
		return err
	}
	if err := v.keepReset(); err != nil {
		return err
	}
	v.deviceSeq = binary.LittleEndian.Uint64(origin[1:])
	return v.cpu.SetState(&state)
}
