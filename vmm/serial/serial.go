// Package serial is a 16550A UART: the serial port that every kernel has a console on, from its first instructions on.
//
// The transmitter is never busy: a byte is gone when the guest has written it. Received bytes wait in a queue of bounded length in front of
// the FIFO; when it is full, Receive says how much it took.
package serial

import (
	"io"
	"sync"
)

// Registers, as offsets from the base port; with the divisor latch open, the first two are the divisor.
const (
	regData = iota
	regInterruptEnable
	regInterruptID // read; FIFO control when written
	regLineControl
	regModemControl
	regLineStatus
	regModemStatus
	regScratch

	// Ports is how many ports the UART takes.
	Ports = 8
)

const (
	enableReceived = 1 << 0
	enableEmpty    = 1 << 1

	idNone     = 0x01
	idEmpty    = 0x02
	idReceived = 0x04
	idFIFOs    = 0xc0

	fifoEnable       = 1 << 0
	fifoClearReceive = 1 << 1

	divisorLatch = 1 << 7

	modemLoopback = 1 << 4

	statusReady = 1 << 0
	statusEmpty = 1<<5 | 1<<6 // holding register and shifter

	modemPresent = 0xb0 // carrier, data set ready, clear to send

	// queueBytes bounds what was received and not read by the guest.
	queueBytes = 4096
)

// UART is the device. Its methods may be called from any thread.
type UART struct {
	mu      sync.Mutex // protects everything below; a leaf, except for line and out, which must not call back
	out     io.Writer
	line    func(high bool)
	queue   []byte
	high    bool
	enable  byte
	control byte
	modem   byte
	scratch byte
	divisor [2]byte
	fifo    bool
	empty   bool // the "transmitter empty" interrupt is due
}

// New makes a UART that writes what the guest sends to out and drives an interrupt line.
func New(out io.Writer, line func(high bool)) *UART {
	u := &UART{out: out, line: line}
	u.Reset()
	return u
}

// Reset puts the UART into its power-on state. What was received and not read is lost.
func (u *UART) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queue, u.enable, u.control, u.modem, u.scratch, u.fifo, u.empty = nil, 0, 0, 0, 0, false, false
	u.divisor = [2]byte{12, 0}
	u.update()
}

// Receive hands bytes to the guest and tells how many there was room for.
func (u *UART) Receive(b []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := min(len(b), queueBytes-len(u.queue))
	u.queue = append(u.queue, b[:n]...)
	u.update()
	return n
}

// In reads a register.
func (u *UART) In(offset uint16) byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	latch := u.control&divisorLatch != 0
	switch offset {
	case regData:
		if latch {
			return u.divisor[0]
		}
		return u.read()
	case regInterruptEnable:
		if latch {
			return u.divisor[1]
		}
		return u.enable
	case regInterruptID:
		return u.identify()
	case regLineControl:
		return u.control
	case regModemControl:
		return u.modem
	case regLineStatus:
		if len(u.queue) > 0 {
			return statusEmpty | statusReady
		}
		return statusEmpty
	case regModemStatus:
		if u.modem&modemLoopback != 0 {
			// RTS->CTS, DTR->DSR, OUT1->RI, OUT2->DCD: how drivers tell a UART from an empty port.
			m := u.modem
			return m>>1&1<<4 | m&1<<5 | m>>2&1<<6 | m>>3&1<<7
		}
		return modemPresent
	case regScratch:
		return u.scratch
	}
	return 0xff
}

// read requires mu.
func (u *UART) read() byte {
	if len(u.queue) == 0 {
		return 0
	}
	b := u.queue[0]
	if u.queue = u.queue[1:]; len(u.queue) == 0 {
		u.queue = nil
	}
	u.update()
	return b
}

// identify requires mu. Reading the cause "transmitter empty" ends it.
func (u *UART) identify() byte {
	var fifos byte
	if u.fifo {
		fifos = idFIFOs
	}
	switch {
	case u.enable&enableReceived != 0 && len(u.queue) > 0:
		return idReceived | fifos
	case u.enable&enableEmpty != 0 && u.empty:
		u.empty = false
		u.update()
		return idEmpty | fifos
	}
	return idNone | fifos
}

// Out writes a register.
func (u *UART) Out(offset uint16, v byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	latch := u.control&divisorLatch != 0
	switch {
	case offset == regData && latch:
		u.divisor[0] = v
	case offset == regInterruptEnable && latch:
		u.divisor[1] = v
	case offset == regData:
		u.send(v)
	case offset == regInterruptEnable:
		u.empty = u.empty || v&enableEmpty != 0 && u.enable&enableEmpty == 0
		u.enable = v & 0x0f
	case offset == regInterruptID:
		u.fifo = v&fifoEnable != 0
		if v&fifoClearReceive != 0 {
			u.queue = nil
		}
	case offset == regLineControl:
		u.control = v
	case offset == regModemControl:
		u.modem = v & 0x1f
	case offset == regScratch:
		u.scratch = v
	}
	u.update()
}

// send requires mu.
func (u *UART) send(v byte) {
	u.empty = true
	if u.modem&modemLoopback != 0 {
		if len(u.queue) < queueBytes {
			u.queue = append(u.queue, v)
		}
		return
	}
	// A console that cannot be written to is the operator's problem, and reported there; the guest goes on.
	_, _ = u.out.Write([]byte{v})
}

// update drives the interrupt line. It requires mu.
func (u *UART) update() {
	high := u.enable&enableReceived != 0 && len(u.queue) > 0 || u.enable&enableEmpty != 0 && u.empty
	if high != u.high {
		u.high = high
		u.line(high)
	}
}

// State is what a UART carries when its VM moves.
type State struct {
	Queue                           []byte
	Enable, Control, Modem, Scratch byte
	Divisor                         [2]byte
	FIFO, Empty                     bool
}

// State captures the UART.
func (u *UART) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return State{append([]byte(nil), u.queue...), u.enable, u.control, u.modem, u.scratch, u.divisor, u.fifo, u.empty}
}

// SetState makes the UART what the captured one was.
func (u *UART) SetState(s State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queue = append([]byte(nil), s.Queue[:min(len(s.Queue), queueBytes)]...)
	u.enable, u.control, u.modem, u.scratch = s.Enable, s.Control, s.Modem, s.Scratch
	u.divisor, u.fifo, u.empty = s.Divisor, s.FIFO, s.Empty
	u.update()
}
