package paging

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// world is the dumb version: it has the contents.
type world struct {
	t       *Table
	want    map[ident.PageNo]int // what each page must hold; 0: zeros
	memory  map[ident.PageNo]int
	file    map[uint32]int
	disk    map[ident.PageNo]int
	next    int
	touched map[ident.PageNo]bool // since it became inactive
}

// contents are a page's, wherever the table says that they are.
func (w *world) contents(page ident.PageNo) int {
	switch where, slot := w.t.Where(page); where {
	case Active, Inactive:
		return w.memory[page]
	case Out:
		return w.file[slot]
	case Backed:
		return w.disk[page]
	}
	return 0
}

// bringIn makes a page resident.
func (w *world) bringIn(page ident.PageNo, evict func(int)) {
	if where, _ := w.t.Where(page); where == Active || where == Inactive {
		return
	}
	v := w.contents(page)
	evict(1)
	w.memory[page] = v
	w.t.Enter(page)
}

// run exercises a table and returns what went wrong, if anything.
func run(t *rapid.T, canary string, fatal func(string, ...any)) {
	const pages = 24
	limit, slots := rapid.IntRange(3, 12).Draw(t, "limit"), rapid.IntRange(0, pages).Draw(t, "slots")
	w := &world{t: New(pages, limit, slots, canary), want: map[ident.PageNo]int{}, memory: map[ident.PageNo]int{}, file: map[uint32]int{},
		disk: map[ident.PageNo]int{}, touched: map[ident.PageNo]bool{}}
	page := func() ident.PageNo { return ident.PageNo(rapid.IntRange(0, pages-1).Draw(t, "page")) }
	full := false
	age := func(n int) {
		for _, p := range w.t.Age(n, nil) {
			w.touched[p] = false
		}
	}
	evict := func(n int) {
		over := w.t.Over(n)
		age(w.t.Wanting(over))
		full = false
		for range over {
			p, ok := w.t.Victim()
			if !ok {
				fatal("no victim: %d in memory, %d have to leave", w.t.Resident(), over)
				return
			}
			if w.touched[p] {
				fatal("page %d leaves though it was touched", p)
			}
			slot, room := w.t.Slot()
			switch {
			case w.memory[p] == 0:
				w.t.Drop(p, 1)
			case w.disk[p] == w.memory[p]:
				w.t.Back(p)
			case room && rapid.IntRange(0, 9).Draw(t, "fails") > 0:
				w.file[slot] = w.memory[p]
				w.t.Leave(p, slot)
				room = false
			default:
				w.t.Stay(p)
				full = true
			}
			if room {
				w.t.Refuse(slot)
			}
			if where, _ := w.t.Where(p); where != Inactive {
				delete(w.memory, p)
			}
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"guest touches": func(*rapid.T) {
			p := page()
			w.bringIn(p, evict)
			if rapid.Bool().Draw(t, "writes") {
				w.next++
				w.want[p], w.memory[p] = w.next, w.next
				delete(w.disk, p)
			}
			w.t.Map(p)
			w.touched[p] = true
		},
		"swapped to disk": func(*rapid.T) { p := page(); w.disk[p] = w.contents(p) },
		"protocol takes": func(*rapid.T) {
			p := page()
			w.t.Unmap(p, 3)
			w.touched[p], w.touched[p+1], w.touched[p+2] = false, false, false
		},
		"protocol drops":    func(*rapid.T) { p := page(); w.t.Drop(p, 1); delete(w.memory, p); delete(w.want, p); delete(w.disk, p) },
		"room is made":      func(*rapid.T) { evict(0) },
		"the limit changes": func(*rapid.T) { w.t.SetLimit(rapid.IntRange(1, 14).Draw(t, "limit"), slots); evict(0) },
		"": func(*rapid.T) {
			if err := w.t.Check(); err != nil {
				fatal("%v", err)
			}
			for p := range ident.PageNo(pages) {
				if got := w.contents(p); got != w.want[p] {
					where, slot := w.t.Where(p)
					fatal("page %d (%v, slot %d) holds %d, want %d", p, where, slot, got, w.want[p])
				}
			}
			if got, most := w.t.Resident(), w.t.Limit(); got > most && !full {
				fatal("%d pages in memory, limit %d", got, most)
			}
		},
	})
}

func TestContentsAreNeverLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { run(t, "", t.Fatalf) })
}

func TestCanariesAreCaught(t *testing.T) {
	for _, canary := range Canaries {
		caught := false
		rapid.Check(t, func(t *rapid.T) { run(t, canary, func(string, ...any) { caught = true }) })
		if !caught {
			t.Errorf("canary %s was not caught", canary)
		}
	}
}

// Scanning once through much memory costs a hot set its mappings hardly ever, and its place in memory never.
func TestAScanDoesNotEvictWhatIsUsed(t *testing.T) {
	table := New(1000, 100, 1000, "")
	out, asked, came := 0, 0, 0
	touch := func(p ident.PageNo) {
		switch where, _ := table.Where(p); where {
		case Active:
			return
		case Inactive:
			if p < 40 {
				asked++
			}
		case Out:
			if p < 40 {
				out++
			}
			fallthrough
		case Absent:
			bringIn(table, p)
			came++
		}
		table.Map(p)
	}
	for i := range 5000 {
		touch(ident.PageNo(i % 40))
		touch(ident.PageNo(i * 7 % 40))
		touch(ident.PageNo(40 + i%900))
		if i%10 == 0 {
			for h := range ident.PageNo(40) {
				touch(h)
			}
		}
	}
	if out > 0 {
		t.Errorf("pages of a hot set of 40 were brought in %d times while %d pages came and went", out, came)
	}
	if most := 40 + came/provenShare; asked > most {
		t.Errorf("pages of a hot set of 40 lost their mappings %d times while %d pages came and went, want at most %d", asked, came, most)
	}
}

// bringIn makes a page resident, and room for it.
func bringIn(table *Table, page ident.PageNo) {
	over := table.Over(1)
	table.Age(table.Wanting(over), nil)
	for range over {
		v, _ := table.Victim()
		slot, _ := table.Slot()
		table.Leave(v, slot)
	}
	table.Enter(page)
}

// Pages that are used are asked whether they are less often than pages come in, also where those that are used all the time are much of what has room.
func TestAskingCostsLessThanComingIn(t *testing.T) {
	const pages, limit, hot = 2048, 1024, 614
	table := New(pages, limit, pages, "")
	rng := rand.New(rand.NewPCG(1, 2))
	came, asked := 0, 0
	touch := func(p ident.PageNo) {
		switch where, _ := table.Where(p); where {
		case Active:
			return
		case Inactive:
			asked++
		default:
			bringIn(table, p)
			came++
		}
		table.Map(p)
	}
	for p := range ident.PageNo(pages) {
		touch(p)
	}
	for i := range 400 * pages {
		if i == 200*pages {
			came, asked = 0, 0
		}
		if rng.IntN(100) == 0 {
			touch(ident.PageNo(rng.IntN(pages)))
		} else {
			touch(ident.PageNo(rng.IntN(hot)))
		}
	}
	if most := came * 3 / 4; asked > most || came > 200*pages/100*6/10 {
		t.Errorf("%d pages were asked while %d came in, of %d that were drawn from all; want at most %d", asked, came, 200*pages/100, most)
	}
}

// What was used all the time, and is not any more, makes room for what is.
func TestAHotSetThatMovesTakesItsPlace(t *testing.T) {
	table := New(1000, 100, 1000, "")
	in := 0
	touch := func(p ident.PageNo) {
		where, _ := table.Where(p)
		if where == Active {
			return
		}
		if where != Inactive {
			bringIn(table, p)
			in++
		}
		table.Map(p)
	}
	for phase := range ident.PageNo(8) {
		for range 100 {
			for p := range ident.PageNo(70) {
				touch(phase*100 + p)
			}
			touch(900 + phase)
		}
		in = 0
		for range 20 {
			for p := range ident.PageNo(70) {
				touch(phase*100 + p)
			}
		}
		if in > 0 {
			t.Errorf("phase %d: pages of a hot set of 70 still come in, %d times; 100 have room", phase, in)
		}
	}
}

func TestDivideConservesMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := ident.Bytes(rapid.IntRange(16, 256).Draw(t, "memory")) * ident.MiB
		var parts []Part
		for i := range rapid.IntRange(1, 12).Draw(t, "parts") {
			parts = append(parts, Part{VM: ident.VMID(i + 1), Bytes: ident.Bytes(rapid.IntRange(1, 300).Draw(t, "size")) * ident.MiB})
		}
		sum := func() (held ident.Bytes) {
			for _, p := range parts {
				held += max(p.Limit, p.Resident)
			}
			return held
		}
		for range 60 {
			before := sum()
			for i, s := range Divide(memory, memory, parts) {
				if s.Limit < min(LeastBytes, parts[i].Bytes) || s.Limit > max(parts[i].Bytes, LeastBytes) || s.Limit%ident.PageSize != 0 {
					t.Fatalf("part %d of %v: %v of %v", i, parts, s, memory)
				}
				parts[i].Limit = s.Limit
			}
			if after := sum(); after > max(before, memory)+ident.Bytes(len(parts))*LeastBytes {
				t.Fatalf("%v held or promised of %v, %v before: %v", after, memory, before, parts)
			}
			i := rapid.IntRange(0, len(parts)-1).Draw(t, "which")
			if p := &parts[i]; rapid.Bool().Draw(t, "grows") {
				p.Resident = min(p.Limit, p.Resident+p.Limit/4) / ident.PageSize * ident.PageSize
			} else {
				p.Resident = min(p.Resident, p.Limit)
			}
		}
		for range 50 { // all want all there is: it converges, evenly
			for i, s := range Divide(memory, memory, parts) {
				parts[i].Limit, parts[i].Resident = s.Limit, min(s.Limit, parts[i].Bytes)
			}
		}
		least := slices.MinFunc(parts, func(a, b Part) int { return int(min(a.Limit, a.Bytes)) - int(min(b.Limit, b.Bytes)) })
		var whole ident.Bytes
		for _, p := range parts {
			whole += p.Bytes
		}
		if fair := memory / ident.Bytes(len(parts)); least.Limit < min(least.Bytes, fair-ident.MiB) {
			t.Fatalf("%v has less than an even share %v: %v", least, fair, parts)
		}
		if got := sum(); whole >= memory && got+ident.Bytes(len(parts))*LeastBytes < memory {
			t.Fatalf("%v of %v is given, though %v is wanted", got, memory, whole)
		}
	})
}
