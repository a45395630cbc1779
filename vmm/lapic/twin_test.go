package lapic

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// twin keeps interrupts as lists, and looks at all of them for everything.
type twin struct {
	irr, isr []byte
	tpr      byte
}

func (w *twin) pending() (byte, bool) {
	if len(w.irr) == 0 {
		return 0, false
	}
	v := slices.Max(w.irr)
	if v>>4 <= w.tpr>>4 {
		return 0, false
	}
	for _, s := range w.isr {
		if v>>4 <= s>>4 {
			return 0, false
		}
	}
	return v, true
}

func without(s []byte, v byte) []byte {
	return slices.DeleteFunc(s, func(x byte) bool { return x == v })
}

func TestAgainstTwin(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		a, w := New(0, true), &twin{}
		a.SetBase(a.Base | baseX2APIC)
		a.WriteMSR(MSRBase+regSVR, 0x1ff, 0)
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			switch rapid.IntRange(0, 3).Draw(r, "step") {
			case 0:
				v := byte(rapid.IntRange(firstVector, 255).Draw(r, "vector"))
				a.Accept(NewMessage(Fixed, v))
				w.irr = append(without(w.irr, v), v)
			case 1:
				got, ok := a.Ack()
				want, wantOK := w.pending()
				if got != want || ok != wantOK {
					r.Fatalf("acknowledged 0x%x, %t, want 0x%x, %t", got, ok, want, wantOK)
				}
				if ok {
					w.irr, w.isr = without(w.irr, got), append(w.isr, got)
				}
			case 2:
				a.WriteMSR(MSRBase+regEOI, 0, 0)
				if len(w.isr) > 0 {
					w.isr = without(w.isr, slices.Max(w.isr))
				}
			case 3:
				w.tpr = byte(rapid.IntRange(0, 255).Draw(r, "priority"))
				a.WriteMSR(MSRBase+regTPR, uint64(w.tpr), 0)
			}
			got, ok := a.Pending()
			if want, wantOK := w.pending(); got != want || ok != wantOK {
				r.Fatalf("pending 0x%x, %t, want 0x%x, %t", got, ok, want, wantOK)
			}
		}
	})
}

// FuzzRegisters has a guest do anything to its registers, in both modes, while interrupts come and time passes.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0, 0xf, 0xff, 1, 0, 0, 1, 0x32, 0x40, 0, 0, 0, 1, 0x38, 0xff, 0, 0, 0, 4, 200, 0, 0, 0, 0})
	f.Add([]byte{2, 4, 0, 0, 0, 0, 0, 0x30, 0x41, 0, 0xc, 0, 3, 0x55, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, now := New(1, false), Nanos(0)
		for ; len(b) >= 6; b = b[6:] {
			reg, v := uint32(b[1]), uint64(b[2])|uint64(b[3])<<8|uint64(b[4])<<16|uint64(b[5])<<56
			switch b[0] % 7 {
			case 0:
				a.WriteMemory(uint64(reg)*16, 4, v&0xffffffff, now)
			case 1:
				a.WriteMSR(MSRBase+reg, v, now)
			case 2:
				a.SetBase(DefaultAddr | v&(3<<10))
			case 3:
				a.Accept(Message(v))
			case 4:
				now += Nanos(v & 0xffffff)
				a.Tick(now)
			case 5:
				a.Ack()
			case 6:
				a.ReadMemory(uint64(reg)*16+v%17, int(v>>8%5), now)
				a.ReadMSR(MSRBase+reg, now)
				a.TakeINIT()
				a.TakeStart()
				a.TakeNMI()
			}
			if v, ok := a.Pending(); ok && (v < firstVector || uint32(v)>>4 <= a.PPR()>>4) {
				t.Fatalf("vector 0x%x is pending with PPR 0x%x", v, a.PPR())
			}
			if due, ok := a.Due(); ok && due < 0 {
				t.Fatalf("due at %d", due)
			}
			if a.ID != 1 || a.LVT[lvtTimer]&^lvtBits[lvtTimer] != 0 {
				t.Fatalf("a fixed bit changed: %+v", a.State)
			}
		}
	})
}
