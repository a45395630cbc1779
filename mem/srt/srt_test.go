package srt

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/cellvisor/cellvisor/ident"
)

// twin is the dumb version of a Table over real contents: it compares.
type twin struct {
	disk   map[Block]int                   // contents
	memory map[uint64]map[ident.PageNo]int // by boot
	next   int
}

func (w *twin) fresh() int { w.next++; return w.next }

// Whatever happens, page and block of every pair are equal, and what is kept is at most the limit.
func TestPairsAreEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 6).Draw(t, "limit")
		table := New(limit, "")
		w := &twin{disk: map[Block]int{}, memory: map[uint64]map[ident.PageNo]int{1: {}}}
		type reading struct {
			mark  Mark
			block Block
			value int
		}
		var readings []reading
		type writing struct {
			mark  Mark
			block Block
			page  ident.PageNo
			value int
		}
		var writings []writing
		block := func() Block {
			return Block{uint8(rapid.IntRange(0, 1).Draw(t, "disk")), uint64(rapid.IntRange(0, 5).Draw(t, "block"))}
		}
		page := func() ident.PageNo { return ident.PageNo(rapid.IntRange(0, 5).Draw(t, "page")) }
		now := func() map[ident.PageNo]int { return w.memory[table.Boot()] }
		free := func(places []Place) {
			for _, p := range places {
				delete(w.memory[p.Boot], p.Page)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin to read": func(*rapid.T) {
				b := block()
				readings = append(readings, reading{table.Mark(), b, w.disk[b]})
			},
			"end reading": func(*rapid.T) {
				if len(readings) == 0 {
					return
				}
				i := rapid.IntRange(0, len(readings)-1).Draw(t, "reading")
				r, p := readings[i], page()
				readings = append(readings[:i], readings[i+1:]...)
				table.Write(p)
				now()[p] = r.value
				_, freed := table.Equal(r.mark, r.block, p)
				free(freed)
			},
			"begin to write": func(*rapid.T) {
				b, p := block(), page()
				mark, freed := table.Change(b.Disk, b.No, b.No)
				free(freed)
				if now()[p] == 0 {
					table.Write(p)
					now()[p] = w.fresh()
				}
				writings = append(writings, writing{mark, b, p, now()[p]})
			},
			"end writing": func(*rapid.T) {
				if len(writings) == 0 {
					return
				}
				i := rapid.IntRange(0, len(writings)-1).Draw(t, "writing")
				x := writings[i]
				writings = append(writings[:i], writings[i+1:]...)
				w.disk[x.block] = x.value
				since, alone, freed := table.Done(x.mark, x.block.Disk, x.block.No, x.block.No)
				free(freed)
				if alone && now()[x.page] == x.value { // whoever reports a pair has compared
					_, freed := table.Equal(since, x.block, x.page)
					free(freed)
				}
			},
			"discard": func(*rapid.T) {
				b := block()
				last := b.No + uint64(rapid.IntRange(0, 100).Draw(t, "more"))
				mark, freed := table.Change(b.Disk, b.No, last)
				free(freed)
				_, _, freed = table.Done(mark, b.Disk, b.No, last)
				free(freed)
				for no := b.No; no <= last; no++ {
					delete(w.disk, Block{b.Disk, no})
				}
			},
			"guest writes": func(*rapid.T) {
				p := page()
				table.Write(p)
				now()[p] = w.fresh()
			},
			"boot": func(*rapid.T) {
				readings, writings = nil, nil // the devices end what they are doing first
				dropped := table.Reset()
				w.memory[table.Boot()] = map[ident.PageNo]int{}
				for _, boot := range dropped {
					delete(w.memory, boot)
				}
			},
			"": func(t *rapid.T) {
				if err := table.Check(); err != nil {
					t.Fatal(err)
				}
				table.Pairs(func(b Block, p Place) {
					memory, there := w.memory[p.Boot]
					if got := memory[p.Page]; !there || got != w.disk[b] {
						t.Fatalf("%v is said to be in %v, where %d is (memory there: %t); it holds %d", b, p, got, there, w.disk[b])
					}
				})
			},
		})
	})
}

func TestManyChangesForgetOldReadings(t *testing.T) {
	table := New(10, "")
	mark := table.Mark()
	for n := range uint64(10 * maxChanges) {
		table.Change(0, 1000+n, 1000+n)
	}
	if entered, _ := table.Equal(mark, Block{0, 1}, 1); entered {
		t.Error("a pair was entered though its block may have been changed by what is forgotten")
	}
	mark = table.Mark()
	table.Change(0, 5, 7)
	for b, want := range map[uint64]bool{4: true, 5: false, 6: false, 7: false, 8: true} {
		if entered, _ := table.Equal(mark, Block{0, b}, ident.PageNo(b)); entered != want {
			t.Errorf("block %d: entered %t, want %t", b, entered, want)
		}
	}
}

func TestOldestBootsGoFirst(t *testing.T) {
	table := New(3, "")
	for boot := range uint64(4) {
		for n := range uint64(2) {
			table.Equal(table.Mark(), Block{0, boot*2 + n}, ident.PageNo(n))
		}
		dropped := table.Reset()
		want := map[uint64]string{0: "[]", 1: "[1]", 2: "[2]", 3: "[3]"}[boot]
		if fmt.Sprint(dropped) != want {
			t.Errorf("boot %d: dropped %v, want %s", boot, dropped, want)
		}
	}
	if live, kept := table.Len(); live != 0 || kept != 2 || fmt.Sprint(table.KeptPages(4)) != "[0 1]" {
		t.Errorf("%d live, %d kept", live, kept)
	}
}

// A boot that nothing is kept of is dropped at once.
func TestEmptyBoot(t *testing.T) {
	table := New(3, "")
	if dropped := table.Reset(); fmt.Sprint(dropped) != "[1]" {
		t.Errorf("dropped %v", dropped)
	}
	if !maps.Equal(table.pages, map[ident.PageNo]Block{}) {
		t.Error("pages")
	}
}
