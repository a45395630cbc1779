package locality

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

// table is a VM whose vCPUs wait for each other's parts, in steps of 20 ms.
type table struct {
	t     *testing.T
	c     *Chooser
	now   ident.Micros
	at    []ident.Part
	share func(v, u int) ident.Micros // what v waits for u's pages in a step, when they are apart
	moves int
}

func newTable(t *testing.T, policy Policy, at ...ident.Part) *table {
	return &table{t: t, c: NewChooser(policy, len(at), ""), at: at, now: ident.Second, share: func(int, int) ident.Micros { return 0 }}
}

// step is one step; granted tells whether a wish is followed.
func (b *table) step(granted func(Wish) bool) (Wish, bool) {
	for part := range ident.Part(4) {
		r := Report{From: part}
		for v, p := range b.at {
			if p != part {
				continue
			}
			r.Residents = append(r.Residents, ident.VCPU(v))
			for u, q := range b.at {
				if w := b.share(v, u); q != p && w > 0 {
					r.Waits = append(r.Waits, Waits{VCPU: ident.VCPU(v), Peer: q, Faults: uint16(w / 100), Waited: w})
				}
			}
		}
		if len(r.Residents) > 0 {
			b.c.Take(b.now, &r)
		}
	}
	w, ok := b.c.Tick(b.now)
	if ok {
		switch {
		case b.at[w.VCPU] != w.From || w.To == w.From:
			b.t.Fatalf("%+v, the vCPUs are at %v", w, b.at)
		case granted(w):
			b.at[w.VCPU] = w.To
			b.moves++
			b.c.Moved(b.now+1000, w.VCPU, w.To)
		default:
			b.c.Refused(b.now + 1000)
		}
	}
	b.now += 20 * ident.Millisecond
	return w, ok
}

func (b *table) run(span ident.Micros, granted func(Wish) bool) {
	for end := b.now + span; b.now < end; {
		b.step(granted)
	}
}

func always(Wish) bool { return true }

// Two vCPUs that need each other's pages come together, by one move.
func TestTwoThatShareComeTogetherByOneMove(t *testing.T) {
	for _, policy := range []Policy{Move, Auto} {
		b := newTable(t, policy, 0, 1)
		b.share = func(int, int) ident.Micros { return 5 * ident.Millisecond }
		b.run(2*ident.Second, always)
		if b.moves != 1 || b.at[0] != b.at[1] {
			t.Errorf("%v: %d moves, vCPUs at %v", policy, b.moves, b.at)
		}
	}
}

func TestNobodyMovesForLittle(t *testing.T) {
	b := newTable(t, Auto, 0, 1, 2)
	b.share = func(int, int) ident.Micros { return 100 } // a fault in 20 ms
	b.run(20*ident.Second, always)
	if b.moves != 0 {
		t.Errorf("%d moves", b.moves)
	}
	for _, policy := range []Policy{Fetch, Replicate} {
		b := newTable(t, policy, 0, 1)
		b.share = func(int, int) ident.Micros { return 10 * ident.Millisecond }
		b.run(ident.Second, always)
		if b.moves != 0 {
			t.Errorf("%v: %d moves", policy, b.moves)
		}
	}
}

// Before anybody moves, about as much has been waited for as the move costs, and not a multiple of it.
func TestAMoveComesWhenWaitingHasCostAsMuch(t *testing.T) {
	b := newTable(t, Auto, 0, 1)
	b.share = func(v, _ int) ident.Micros { return ident.Micros(1-v) * 2 * ident.Millisecond }
	waited := ident.Micros(0)
	for b.moves == 0 && b.now < 10*ident.Second {
		b.step(always)
		waited += 2 * ident.Millisecond
	}
	if waited < Price || waited > 2*Price || b.at[0] != 1 {
		t.Errorf("moved after %d us of waiting, vCPUs at %v; a move costs %d", waited, b.at, Price)
	}
}

// When moves do not help, since no server has room for all, they get rare: ten seconds have a handful, a minute not many more.
func TestUselessMovesGetRare(t *testing.T) {
	b := newTable(t, Auto, 0, 0, 1)
	b.share = func(int, int) ident.Micros { return 5 * ident.Millisecond }
	room := func(w Wish) bool {
		n := 0
		for _, p := range b.at {
			if p == w.To {
				n++
			}
		}
		return n < 2
	}
	b.run(10*ident.Second, room)
	first := b.moves
	b.run(50*ident.Second, room)
	t.Logf("%d moves in ten seconds, %d in a minute", first, b.moves)
	if first > 40 || b.moves > 4*first {
		t.Errorf("%d moves in ten seconds, %d in a minute", first, b.moves)
	}
}

// A vCPU whose partner changes again and again follows every time: moves that help make nobody patient.
func TestUsefulMovesStayQuick(t *testing.T) {
	b := newTable(t, Auto, 0, 1, 2)
	for round := range 20 {
		other := 1 + round%2
		b.share = func(v, u int) ident.Micros {
			if v == 0 && u == other || u == 0 && v == other {
				return 5 * ident.Millisecond
			}
			return 0
		}
		for _, v := range []int{1, 2} { // partners are held where they are by others
			b.at[v] = ident.Part(v)
			b.c.Moved(b.now, ident.VCPU(v), ident.Part(v))
		}
		b.run(600*ident.Millisecond, func(w Wish) bool { return w.VCPU == 0 })
		if b.at[0] != b.at[other] {
			t.Fatalf("round %d: vCPUs at %v", round, b.at)
		}
	}
}

// A part that refuses is asked less and less often.
func TestAPartThatRefusesIsLeftAlone(t *testing.T) {
	b := newTable(t, Auto, 0, 1)
	b.share = func(int, int) ident.Micros { return 5 * ident.Millisecond }
	asked := 0
	b.run(60*ident.Second, func(Wish) bool { asked++; return false })
	if asked < 4 || asked > 40 {
		t.Errorf("asked %d times in a minute", asked)
	}
}

// A wish that is never answered does not keep the chooser from others.
func TestALostWishIsGivenUp(t *testing.T) {
	c := NewChooser(Auto, 2, "")
	now := ident.Micros(ident.Second)
	wishes := 0
	for range 500 {
		c.Take(now, &Report{From: 0, Residents: []ident.VCPU{0}, Waits: []Waits{{VCPU: 0, Peer: 1, Faults: 100, Waited: 10 * ident.Millisecond}}})
		c.Take(now, &Report{From: 1, Residents: []ident.VCPU{1}})
		if _, ok := c.Tick(now); ok {
			wishes++
		}
		now += 20 * ident.Millisecond
	}
	if wishes < 2 || wishes > 20 {
		t.Errorf("%d wishes in ten seconds", wishes)
	}
}

// Only one of the two at part 0 waits for the one at part 1, which waits for nobody: it is that one which moves, to where more are.
func TestVCPUsGatherWhereMostAre(t *testing.T) {
	b := newTable(t, Auto, 0, 1, 0)
	b.share = func(v, u int) ident.Micros {
		if v == 0 && u == 1 {
			return 5 * ident.Millisecond
		}
		return 0
	}
	b.run(2*ident.Second, always)
	if b.moves != 1 || b.at[1] != 0 {
		t.Errorf("%d moves, vCPUs at %v", b.moves, b.at)
	}
}

// Nobody is sent to a part that is known to be full, and the other one of the two goes.
func TestFullPartsAreNotAsked(t *testing.T) {
	b := newTable(t, Auto, 0, 1, 0)
	b.share = func(v, u int) ident.Micros {
		if v+u == 1 {
			return 5 * ident.Millisecond
		}
		return 0
	}
	b.c.Room(0, 2)
	b.c.Room(1, 2)
	b.run(2*ident.Second, func(w Wish) bool {
		if w.To == 0 {
			t.Errorf("%+v, where there is no slot", w)
		}
		return true
	})
	if b.moves != 1 || b.at[0] != 1 {
		t.Errorf("%d moves, vCPUs at %v", b.moves, b.at)
	}
}

// Pages that were left behind where no vCPU is are waited for once: it takes eight times the price until somebody goes there.
func TestPagesLeftBehindAreFetched(t *testing.T) {
	for _, c := range []struct {
		waited ident.Micros
		goes   bool
	}{{4 * Price, false}, {12 * Price, true}} {
		b := newTable(t, Auto, 0, 0)
		b.step(always)
		b.c.Take(b.now, &Report{From: 0, Residents: []ident.VCPU{0, 1}, Waits: []Waits{{VCPU: 0, Peer: 1, Faults: 100, Waited: c.waited}}})
		b.run(ident.Second, always)
		if goes := b.moves > 0; goes != c.goes {
			t.Errorf("after waiting for %d us: %d moves", c.waited, b.moves)
		}
	}
}
