package serial

import (
	"bytes"
	"testing"
)

func TestTransmitAndInterrupt(t *testing.T) {
	var out bytes.Buffer
	var high bool
	u := New(&out, func(h bool) { high = h })
	u.Out(regData, 'a')
	if out.String() != "a" || high {
		t.Fatalf("printed %q, line %v", out.String(), high)
	}
	u.Out(regInterruptEnable, enableEmpty)
	if !high {
		t.Fatal("no interrupt: the transmitter is empty")
	}
	if id := u.In(regInterruptID); id&0x0f != idEmpty || high {
		t.Fatalf("cause 0x%x, line %v after it was read", id, high)
	}
}

func TestReceive(t *testing.T) {
	var high bool
	u := New(&bytes.Buffer{}, func(h bool) { high = h })
	u.Out(regInterruptEnable, enableReceived)
	if n := u.Receive([]byte("ab")); n != 2 || !high {
		t.Fatalf("took %d, line %v", n, high)
	}
	if u.In(regLineStatus)&statusReady == 0 || u.In(regInterruptID)&0x0f != idReceived {
		t.Fatal("received bytes are not announced")
	}
	if a, b := u.In(regData), u.In(regData); a != 'a' || b != 'b' || high {
		t.Fatalf("read %c %c, line %v", a, b, high)
	}
	if n := u.Receive(make([]byte, queueBytes+1)); n != queueBytes {
		t.Errorf("took %d bytes, want %d", n, queueBytes)
	}
}

func TestDriverFindsUART(t *testing.T) {
	u := New(&bytes.Buffer{}, func(bool) {})
	// What Linux's autoconfig does: scratch, loopback, FIFO.
	u.Out(regModemControl, modemLoopback|0x0a)
	if got := u.In(regModemStatus) & 0xf0; got != 0x90 {
		t.Errorf("loopback status 0x%x, want 0x90", got)
	}
	u.Out(regInterruptID, fifoEnable)
	if u.In(regInterruptID)&idFIFOs != idFIFOs {
		t.Error("no FIFOs of a 16550A")
	}
	u.Out(regLineControl, divisorLatch)
	u.Out(regData, 1)
	u.Out(regLineControl, 3)
	if u.divisor[0] != 1 {
		t.Error("divisor not set")
	}
}

func TestState(t *testing.T) {
	u := New(&bytes.Buffer{}, func(bool) {})
	u.Receive([]byte("waiting"))
	u.Out(regScratch, 0x5a)
	v := New(&bytes.Buffer{}, func(bool) {})
	v.SetState(u.State())
	if v.In(regScratch) != 0x5a || v.In(regData) != 'w' {
		t.Error("state did not come along")
	}
}
