package platform

import "time"

// timer is channel 2 of a programmable interval timer: the one that a kernel measures its time stamp counter with before it has read any table.
// It counts down once from what it was loaded with and then shows so by its output; it interrupts nobody.
type timer struct {
	gate    bool
	loaded  uint32 // 1 to 65536
	started time.Duration
	low     byte // first byte of a load of two
	half    bool // the next access is the second byte
}

const (
	portTimer2    = 0x42
	portTimerMode = 0x43
	portSpeaker   = 0x61

	timerHz = 1193182

	speakerGate   = 1 << 0
	speakerData   = 1 << 1
	speakerOutput = 1 << 5
)

// count is what the channel has left at a time; 0 means that it is done.
func (t *timer) count(now time.Duration) uint32 {
	const longest = time.Second // more than 65536 ticks take
	ticks := uint64(min(now-t.started, longest)) * timerHz / uint64(time.Second)
	if t.loaded == 0 || ticks >= uint64(t.loaded) {
		return 0
	}
	return t.loaded - uint32(ticks)
}

// out reports whether the port is the timer's.
func (t *timer) out(now time.Duration, port uint16, b byte) bool {
	switch port {
	case portTimerMode:
		t.half = false
	case portTimer2:
		if t.half = !t.half; t.half {
			t.low = b
			break
		}
		if t.loaded = uint32(b)<<8 | uint32(t.low); t.loaded == 0 {
			t.loaded = 1 << 16
		}
		t.started = now
	case portSpeaker:
		t.gate = b&speakerGate != 0
	default:
		return false
	}
	return true
}

// in reports whether the port is the timer's.
func (t *timer) in(now time.Duration, port uint16) (byte, bool) {
	switch port {
	case portTimer2:
		if t.half = !t.half; t.half {
			return byte(t.count(now)), true
		}
		return byte(t.count(now) >> 8), true
	case portSpeaker:
		var b byte
		if t.gate {
			b |= speakerGate
		}
		if t.count(now) == 0 {
			b |= speakerOutput
		}
		return b, true
	}
	return 0, false
}
