package wire

import (
	"encoding/binary"
	"fmt"
)

// Device frames: what a vCPU asks the home part's devices, and the answers. The body of one is
//
//	 0  id      8 bytes  chosen by the requester, never zero, unique on its connection while the request is open
//	 8  kind    1 byte   DeviceKind
//	 9  flags   1 byte   bit 0: this is a reply; bit 1: no reply is wanted
//	10  status  2 bytes  of a reply: DeviceStatus
//	12  payload, up to DeviceBodyLimit bytes

// DeviceHeaderBytes is the size of what precedes a device frame's payload.
const DeviceHeaderBytes = 12

// DeviceKind says which device service a request wants.
type DeviceKind uint8

// Device services. The payloads belong to the worker; link and wire carry them unread.
const (
	DeviceConsole DeviceKind = 1 + iota // console bytes
	DeviceOutput                        // an output record
	DeviceClock                         // milliseconds since the VM first started
	DeviceExit                          // the guest ended the VM with a status
	DeviceGeneric                       // anything else that parts ask each other
	DeviceVCPU                          // a vCPU goes from one part to another
	deviceKindEnd
)

// DeviceStatus is the outcome in a reply.
type DeviceStatus uint16

// Outcomes of device requests.
const (
	DeviceOK       DeviceStatus = iota
	DeviceNotHome               // the receiver is not the home part
	DeviceNotReady              // the receiver cannot serve now (no lease, ended): ask again or give up
	DeviceBad                   // the request makes no sense to the receiver
	deviceStatusEnd
)

const (
	deviceFlagReply  = 1
	deviceFlagOneWay = 2
)

// DeviceMsg is a device request or reply.
type DeviceMsg struct {
	ID      uint64
	Kind    DeviceKind
	Reply   bool
	OneWay  bool // a request that wants no reply
	Status  DeviceStatus
	Payload []byte
}

// AppendDevice appends the body of a device frame to dst. A payload above DeviceBodyLimit is the caller's broken invariant, and panics.
func AppendDevice(dst []byte, m DeviceMsg) []byte {
	if len(m.Payload) > DeviceBodyLimit {
		panic("wire: device payload above its limit")
	}
	var flags byte
	if m.Reply {
		flags |= deviceFlagReply
	}
	if m.OneWay {
		flags |= deviceFlagOneWay
	}
	dst = binary.LittleEndian.AppendUint64(dst, m.ID)
	dst = append(dst, byte(m.Kind), flags)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Status))
	return append(dst, m.Payload...)
}

// ParseDevice decodes the body of a device frame. The payload aliases body.
func ParseDevice(body []byte) (DeviceMsg, error) {
	if len(body) < DeviceHeaderBytes || len(body) > DeviceHeaderBytes+DeviceBodyLimit {
		return DeviceMsg{}, fmt.Errorf("wire: device frame of %d bytes: %w", len(body), ErrBadFrame)
	}
	m := DeviceMsg{
		ID:      binary.LittleEndian.Uint64(body),
		Kind:    DeviceKind(body[8]),
		Reply:   body[9]&deviceFlagReply != 0,
		OneWay:  body[9]&deviceFlagOneWay != 0,
		Status:  DeviceStatus(binary.LittleEndian.Uint16(body[10:])),
		Payload: body[DeviceHeaderBytes:],
	}
	switch {
	case m.ID == 0:
		return DeviceMsg{}, fmt.Errorf("wire: device frame with request id 0: %w", ErrBadFrame)
	case m.Kind == 0 || m.Kind >= deviceKindEnd:
		return DeviceMsg{}, fmt.Errorf("wire: device frame of unknown kind %d: %w", m.Kind, ErrBadFrame)
	case body[9] > deviceFlagOneWay:
		return DeviceMsg{}, fmt.Errorf("wire: device frame with flags %#x: %w", body[9], ErrBadFrame)
	case m.Status >= deviceStatusEnd || !m.Reply && m.Status != DeviceOK:
		return DeviceMsg{}, fmt.Errorf("wire: device frame with status %d: %w", m.Status, ErrBadFrame)
	}
	return m, nil
}
