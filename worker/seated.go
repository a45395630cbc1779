package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// A vCPU of a Linux machine over several servers is handed over with its local APIC. Interrupts that come while it leaves wait, and go after it; those that
// come to where it was before are sent on (see machine.Interrupts).

// bootVCPU is the vCPU that a Linux machine boots with. It stays at home, where its kernel is loaded.
const bootVCPU = ident.VCPU(0)

// originSeat begins a captured vCPU of such a machine: number of its last device request 8 bytes, the clock that it counts by as an encoded clockOrigin,
// the captured seat.
const originSeat = 5

const originSeatHead = 1 + 8 + 1 + clockOriginBytes

// captureSeat is captureMoving for such a vCPU.
func (w *Worker) captureSeat(v *vcpu) ([]byte, error) {
	clock := w.linux.span.clock.Load()
	if clock == nil {
		return nil, errors.New("a vCPU is to leave before its machine has a clock")
	}
	seat, err := v.seat.Capture()
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, originSeatHead+len(seat)), originSeat)
	b = binary.LittleEndian.AppendUint64(b, v.deviceSeq)
	b = append(b, clock.encode()...)
	return append(b, seat...), nil
}

// sit puts such a vCPU in place: its thread sets its clock when it arrives.
func (w *Worker) sit(v *vcpu, r handRequest) error {
	if len(r.state) < originSeatHead || r.state[0] != originSeat {
		return fmt.Errorf("state of vCPU %d of %d bytes is not that of a Linux machine", r.vcpu, len(r.state))
	}
	clock, err := decodeClockOrigin(r.state[9:originSeatHead])
	if err != nil {
		return err
	}
	if err := v.seat.Install(r.state[originSeatHead:], r.age); err != nil {
		return err
	}
	v.deviceSeq = binary.LittleEndian.Uint64(r.state[1:])
	w.linux.span.clock.CompareAndSwap(nil, &clock)
	return nil
}

// settlePause is how long a vCPU that is to leave again rests while interrupts that were sent after it before are still on their way.
const settlePause = 50 * time.Microsecond

// settles tells whether a vCPU can be captured; if it cannot yet, it stands still for a moment.
func (w *Worker) settles(v *vcpu) bool {
	if v.seat == nil || v.seat.IsSettled() {
		return true
	}
	time.Sleep(settlePause)
	return false
}

// comes is called when a vCPU is this part's.
func (w *Worker) comes(v *vcpu, from ident.Part) {
	if v.seat != nil {
		v.seat.Come(from)
	}
}

// goesTo is called when a vCPU that was captured is another part's.
func (w *Worker) goesTo(v *vcpu, to ident.Part) {
	if v.seat != nil {
		v.seat.Gone(to)
	}
}

// forgets is called when a vCPU does not come here after all.
func (w *Worker) forgets(v *vcpu) {
	if v != nil && v.seat != nil {
		v.seat.Forget()
	}
}

// stays is called when a vCPU that was captured goes on here.
func (w *Worker) stays(v *vcpu) {
	if v.seat != nil {
		v.seat.Stay()
	}
}
