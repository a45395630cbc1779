package worker

import "testing"

// Held-back output has a bound: home says once that it is reached, and once that it is not any more.
func TestHeldOutputIsBounded(t *testing.T) {
	h, err := newHome(&files{dir: t.TempDir()}, 1, func(uint32) {})
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	var told []bool
	h.onFull, h.heldLimit = func(on bool, _ int) { told = append(told, on) }, 100
	if err := h.hold(true); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := h.do(deviceRequest{op: opConsole, seq: uint64(i + 1), value: 'x'}); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 1 || !told[0] {
		t.Fatalf("told %v with %d bytes held", told, h.heldBytes())
	}
	cut := h.cutHere(1)
	cut.console -= 60
	for range 2 {
		if err := h.committed(cut); err != nil {
			t.Fatal(err)
		}
		cut.console += 20
	}
	if h.heldBytes() != 40 || len(told) != 2 || told[1] {
		t.Fatalf("told %v with %d bytes held", told, h.heldBytes())
	}
}
