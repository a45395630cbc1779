package lapic

// Nanos is a time in nanoseconds, on whatever clock the caller keeps.
type Nanos int64

// Timer is the timer's state. Its bus clock has 1 GHz: with a divider of n it counts down once every n nanoseconds.
type Timer struct {
	Initial uint32
	Divide  uint32 // the register
	Count   uint32 // what it had at Since
	Since   Nanos
	Running bool
}

// minPeriod bounds how often a periodic timer of a guest fires.
const minPeriod Nanos = 100_000

// divider is by how much the register divides the bus clock: bits 0, 1 and 3 are the power of two, all ones meaning by one.
func (t *Timer) divider() Nanos {
	code := t.Divide&3 | t.Divide>>1&4
	return 1 << ((code + 1) & 7)
}

func (t *Timer) length(count uint32) Nanos { return Nanos(count) * t.divider() }

func (a *APIC) isPeriodic() bool { return a.LVT[lvtTimer]&lvtPeriodic != 0 }

// period is what lies between two interrupts of a periodic timer.
func (t *Timer) period() Nanos { return max(minPeriod, t.length(t.Initial)) }

// current is the current-count register at a time.
func (a *APIC) current(now Nanos) uint32 {
	t := &a.Timer
	if !t.Running {
		return 0
	}
	gone := max(0, now-t.Since)
	if whole := t.length(t.Count); gone < whole {
		return t.Count - uint32(gone/t.divider())
	}
	if !a.isPeriodic() {
		return 0
	}
	gone = (gone - t.length(t.Count)) % t.period()
	return t.Initial - uint32(min(Nanos(t.Initial), gone/t.divider()))
}

func (a *APIC) setInitial(count uint32, now Nanos) {
	a.Timer.Initial, a.Timer.Count, a.Timer.Since, a.Timer.Running = count, count, now, count != 0
}

// setDivide changes the speed from now on.
func (a *APIC) setDivide(v uint32, now Nanos) {
	count := a.current(now)
	a.Timer.Divide = v & 0xb
	if a.Timer.Running {
		a.Timer.Count, a.Timer.Since = count, now
	}
}

// Due is when the timer fires next.
func (a *APIC) Due() (Nanos, bool) {
	return a.Timer.Since + a.Timer.length(a.Timer.Count), a.Timer.Running
}

// Tick lets the timer fire if it is due. It reports whether there may be something for the vCPU to look at. A periodic timer that is late fires once.
func (a *APIC) Tick(now Nanos) bool {
	due, ok := a.Due()
	if !ok || now < due {
		return false
	}
	t := &a.Timer
	if a.isPeriodic() && t.Initial != 0 {
		t.Since, t.Count = due+(now-due)/t.period()*t.period(), t.Initial
		if short := minPeriod - t.length(t.Initial); short > 0 {
			t.Since += short
		}
	} else {
		t.Running = false
	}
	entry := a.LVT[lvtTimer]
	if entry&lvtMasked != 0 {
		return false
	}
	return a.acceptFixed(byte(entry), false)
}
