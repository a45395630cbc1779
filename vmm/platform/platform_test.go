package platform

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/vmm/linux"
)

func newTest() (*Platform, *time.Duration) {
	var elapsed time.Duration
	return &Platform{
		Elapsed: func() time.Duration { return elapsed },
		Now:     func() time.Time { return time.Date(2026, 11, 21, 13, 45, 59, 0, time.UTC) },
	}, &elapsed
}

func TestPowerAndReset(t *testing.T) {
	p, _ := newTest()
	for _, c := range []struct {
		port uint16
		v    uint32
		want Event
	}{
		{linux.SleepControlPort, linux.SleepTypeS5<<2 | sleepEnable, PowerOff},
		{linux.SleepControlPort, linux.SleepTypeS5 << 2, None},
		{linux.ResetPort, linux.ResetValue, Reset},
		{linux.ResetPort, 0, None},
		{portPCIReset, 0x02, None},
		{portPCIReset, 0x06, Reset},
		{portKeyboardCommand, keyboardReset, Reset},
		{portSystemControl, fastReset, Reset},
	} {
		if got, ok := p.Out(c.port, 1, c.v); got != c.want || !ok {
			t.Errorf("port 0x%x, value 0x%x: %s, %v", c.port, c.v, got, ok)
		}
	}
	if _, ok := p.Out(0x1234, 1, 0); ok {
		t.Error("a port that is none")
	}
}

func TestPMTimer(t *testing.T) {
	p, elapsed := newTest()
	*elapsed = 2 * time.Second
	if v, ok := p.In(linux.PMTimerPort, 4); !ok || v != 2*linux.PMTimerHz {
		t.Errorf("%d after two seconds", v)
	}
	*elapsed = 1000 * 24 * time.Hour
	if v, _ := p.In(linux.PMTimerPort, 4); v > 0xffffff {
		t.Errorf("0x%x has more than 24 bits", v)
	}
}

func TestIntervalTimer(t *testing.T) {
	p, elapsed := newTest()
	p.Out(portSpeaker, 1, speakerGate)
	p.Out(portTimerMode, 1, 0xb0)
	p.Out(portTimer2, 1, 0xa9)
	p.Out(portTimer2, 1, 0x04) // 1193 ticks: one millisecond
	if v, _ := p.In(portSpeaker, 1); v&speakerOutput != 0 {
		t.Error("done at once")
	}
	*elapsed += 500 * time.Microsecond
	low, _ := p.In(portTimer2, 1)
	high, _ := p.In(portTimer2, 1)
	if n := high<<8 | low; n < 590 || n > 600 {
		t.Errorf("%d left after half the time", n)
	}
	*elapsed += 501 * time.Microsecond
	if v, _ := p.In(portSpeaker, 1); v&speakerOutput == 0 {
		t.Error("not done")
	}
}

func TestClock(t *testing.T) {
	p, _ := newTest()
	for register, want := range map[uint32]uint32{0: 0x59, 2: 0x45, 4: 0x13, 7: 0x21, 8: 0x11, 9: 0x26, 0x32: 0x20, 0x0a: 0x26} {
		p.Out(portClockIndex, 1, register)
		if v, _ := p.In(portClockData, 1); v != want {
			t.Errorf("register 0x%x reads 0x%x, want 0x%x", register, v, want)
		}
	}
}
