package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// stateVersion is the encoding's version, its first two bytes. A change of meaning or layout takes the next number; UnmarshalBinary refuses
// what it does not know rather than guess.
//
//	u16 version, u32 total bytes
//	the fixed structs in the kernel's layout, little endian: Regs, Sregs, Xcrs, Debug, Events, MP
//	u32 count of MSRs, then each as struct kvm_msr_entry
//	u32 bytes of XSAVE, then those
const stateVersion = 1

const maxXsave = 1 << 16

// ErrState is wrapped by UnmarshalBinary's errors.
var ErrState = errors.New("not a vCPU state that this version understands")

func (s *VCPUState) fixed() []any {
	return []any{&s.Regs, &s.Sregs, &s.Xcrs, &s.Debug, &s.Events, &s.MP}
}

// MarshalBinary encodes the state; it implements encoding.BinaryMarshaler.
func (s *VCPUState) MarshalBinary() ([]byte, error) {
	if len(s.MSRs) > 2*maxMSRs || len(s.Xsave) > maxXsave {
		return nil, fmt.Errorf("encode vCPU state: %d MSRs and %d bytes of XSAVE, at most %d and %d", len(s.MSRs), len(s.Xsave), 2*maxMSRs, maxXsave)
	}
	var b bytes.Buffer
	parts := append([]any{uint16(stateVersion), uint32(0)}, s.fixed()...)
	parts = append(parts, uint32(len(s.MSRs)), s.MSRs, uint32(len(s.Xsave)), s.Xsave)
	for _, part := range parts {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, fmt.Errorf("encode vCPU state: %w", err)
		}
	}
	out := b.Bytes()
	binary.LittleEndian.PutUint32(out[2:], uint32(len(out)))
	return out, nil
}

// UnmarshalBinary decodes a state; it implements encoding.BinaryUnmarshaler. It takes hostile input.
func (s *VCPUState) UnmarshalBinary(data []byte) error {
	if len(data) < 6 {
		return fmt.Errorf("%w: %d bytes", ErrState, len(data))
	}
	if v := binary.LittleEndian.Uint16(data); v != stateVersion {
		return fmt.Errorf("%w: version %d, want %d", ErrState, v, stateVersion)
	}
	if n := binary.LittleEndian.Uint32(data[2:]); uint64(n) != uint64(len(data)) {
		return fmt.Errorf("%w: says it has %d bytes, has %d", ErrState, n, len(data))
	}
	var out VCPUState
	r := bytes.NewReader(data[6:])
	for _, part := range out.fixed() {
		if err := binary.Read(r, binary.LittleEndian, part); err != nil {
			return fmt.Errorf("%w: cut short", ErrState)
		}
	}
	n, err := readCount(r, binary.Size(gokvm.MSREntry{}), 2*maxMSRs)
	if err != nil {
		return err
	}
	out.MSRs = make([]gokvm.MSREntry, n)
	if err := binary.Read(r, binary.LittleEndian, out.MSRs); err != nil {
		return fmt.Errorf("%w: cut short", ErrState)
	}
	if n, err = readCount(r, 1, maxXsave); err != nil {
		return err
	}
	out.Xsave = make([]byte, n)
	if _, err := r.Read(out.Xsave); err != nil && n > 0 {
		return fmt.Errorf("%w: cut short", ErrState)
	}
	if r.Len() != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrState, r.Len())
	}
	*s = out
	return nil
}

// readCount reads a count of items of itemBytes each, which must not be more than most and must be there.
func readCount(r *bytes.Reader, itemBytes, most int) (int, error) {
	var n uint32
	if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
		return 0, fmt.Errorf("%w: cut short", ErrState)
	}
	if n > uint32(most) || int(n)*itemBytes > r.Len() {
		return 0, fmt.Errorf("%w: %d items of %d bytes with %d bytes left", ErrState, n, itemBytes, r.Len())
	}
	return int(n), nil
}
