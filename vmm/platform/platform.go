// Package platform is the fixed hardware of a machine besides its devices: the power-management timer, one channel of the old interval timer,
// the real-time clock, and the registers that switch the machine off or reset it.
package platform

import (
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/vmm/linux"
)

// Event is what the guest asked of the machine as a whole.
type Event uint8

// The events.
const (
	None Event = iota
	PowerOff
	Reset
)

// String names the event.
func (e Event) String() string {
	switch e {
	case PowerOff:
		return "power off"
	case Reset:
		return "reset"
	}
	return "none"
}

// Platform decodes the fixed ports. Its methods may be called from any thread.
type Platform struct {
	// Elapsed is the time since the machine was switched on; Now is the time of day.
	Elapsed func() time.Duration
	Now     func() time.Time

	mu    sync.Mutex // protects everything below; a leaf
	index byte       // of the clock's register
	timer timer
}

const (
	portKeyboardCommand = 0x64
	portClockIndex      = 0x70
	portClockData       = 0x71
	portSystemControl   = 0x92
	portPCIReset        = 0xcf9

	keyboardReset = 0xfe
	fastReset     = 1 << 0
	pciReset      = 1 << 2

	sleepEnable = 1 << 5
	wakeStatus  = 1 << 7
)

// Out carries out a write of size bytes. It reports whether the port is one of the platform's, and what was asked for.
func (p *Platform) Out(port uint16, size int, v uint32) (Event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := byte(v)
	switch {
	case size != 1:
		return None, false
	case port == linux.SleepControlPort:
		if b&sleepEnable != 0 && b>>2&7 == linux.SleepTypeS5 {
			return PowerOff, true
		}
	case port == linux.SleepStatusPort:
	case port == linux.ResetPort:
		if b == linux.ResetValue {
			return Reset, true
		}
	case port == portPCIReset:
		if b&pciReset != 0 {
			return Reset, true
		}
	case port == portKeyboardCommand:
		if b == keyboardReset {
			return Reset, true
		}
	case port == portSystemControl:
		if b&fastReset != 0 {
			return Reset, true
		}
	case port == portClockIndex:
		p.index = b & 0x7f
	case port == portClockData:
		// The clock follows the host's.
	default:
		return None, p.timer.out(p.Elapsed(), port, b)
	}
	return None, true
}

// State is what the platform carries when its VM moves.
type State struct {
	Index        byte
	ElapsedNanos int64 // since the machine was switched on
	TimerGate    bool
	TimerLoaded  uint32
	TimerStarted int64
	TimerLow     byte
	TimerHalf    bool
}

// State captures the platform.
func (p *Platform) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.timer
	return State{p.index, int64(p.Elapsed()), t.gate, t.loaded, int64(t.started), t.low, t.half}
}

// SetState makes the platform what the captured one was; its Elapsed must go on from ElapsedNanos.
func (p *Platform) SetState(s State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index = s.Index & 0x7f
	p.timer = timer{s.TimerGate, min(s.TimerLoaded, 1<<16), time.Duration(s.TimerStarted), s.TimerLow, s.TimerHalf}
}

// In reads size bytes. It reports whether the port is one of the platform's.
func (p *Platform) In(port uint16, size int) (uint32, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case port == linux.PMTimerPort && size == 4:
		// Split, so that days of nanoseconds times the frequency do not overflow.
		t := p.Elapsed()
		ticks := uint64(t/time.Second)*linux.PMTimerHz + uint64(t%time.Second)*linux.PMTimerHz/uint64(time.Second)
		return uint32(ticks & 0xffffff), true // 24 bits, as announced
	case size != 1:
	case port == linux.SleepStatusPort:
		return wakeStatus, true
	case port == linux.SleepControlPort, port == linux.ResetPort:
		return 0, true
	case port == portClockIndex:
		return uint32(p.index), true
	case port == portClockData:
		return uint32(p.clock()), true
	default:
		b, ok := p.timer.in(p.Elapsed(), port)
		return uint32(b), ok
	}
	return 0, false
}

// Registers of the MC146818 clock, in binary-coded decimal and 24 hours.
func (p *Platform) clock() byte {
	const statusB24Hours, statusDValid = 1 << 1, 1 << 7
	now := p.Now().UTC()
	bcd := func(n int) byte { return byte(n/10<<4 | n%10) }
	switch p.index {
	case 0x00:
		return bcd(now.Second())
	case 0x02:
		return bcd(now.Minute())
	case 0x04:
		return bcd(now.Hour())
	case 0x06:
		return bcd(int(now.Weekday()) + 1)
	case 0x07:
		return bcd(now.Day())
	case 0x08:
		return bcd(int(now.Month()))
	case 0x09:
		return bcd(now.Year() % 100)
	case 0x0a:
		return 0x26 // 32768 Hz, no update under way
	case 0x0b:
		return statusB24Hours
	case 0x0d:
		return statusDValid
	case 0x32:
		return bcd(now.Year() / 100)
	}
	return 0
}
