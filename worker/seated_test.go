package worker

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
)

// The processors of a Linux machine wake each other from HLT, 2,000 or 500 times, while one of them, and a third that was not started yet, go from part to part, home among
// them. Each interrupt arrives once: one that was lost would leave both halted, one too many is counted. Their clock never goes back.
func TestProcessorsOfALinuxMachineGoFromPartToPart(t *testing.T) {
	for _, c := range []struct {
		name    string
		rounds  uint64
		options map[string]string
	}{{"alone", 2000, nil}, {"taking turns", 500, map[string]string{"stint": "1ms", "clock": "measured"}}} {
		t.Run(c.name, func(t *testing.T) { processorsGo(t, c.rounds, c.options) })
	}
}

func processorsGo(t *testing.T, rounds uint64, options map[string]string) {
	v := startLinux(t, linuxtest.SMP(rounds), 3, options)
	at := []int{0, 1, 2}
	var downs []ident.Micros
	for seq := uint64(1); v.running() && seq < 200; seq++ {
		id := 1 + int(seq%5)/4
		to := (at[id] + 1 + int(seq/3)%2) % 3
		e := v.hand(seq, ident.VCPU(id), at[id], to)
		switch {
		case e.Moved:
			at[id] = to
			downs = append(downs, e.DownMicros)
		case v.running() && !strings.Contains(e.Why, "ended") && !strings.Contains(e.Why, "begun") && e.Why != "it took too long" && !strings.Contains(e.Why, "refuses"):
			t.Fatalf("hand-over %d: %s\n%s", seq, e.Why, v.logs())
		}
	}
	v.mustExit(2 * time.Minute)
	if got := v.console(); got != linuxtest.SMPText {
		t.Errorf("printed %q, want %q\n%s", got, linuxtest.SMPText, v.logs())
	}
	if len(downs) == 0 {
		t.Fatalf("nothing was handed over\n%s", v.logs())
	}
	slices.Sort(downs)
	t.Logf("%d hand-overs, median %d us, worst %d us", len(downs), downs[len(downs)/2], downs[len(downs)-1])
}

// The processor that a machine boots with stays with the devices.
func TestTheBootProcessorStaysAtHome(t *testing.T) {
	v := startLinux(t, linuxtest.SMP(2000), 2, nil)
	if e := v.hand(1, 0, 0, 1); e.Moved || !strings.Contains(e.Why, "boot processor") {
		t.Errorf("%+v", e)
	}
}
