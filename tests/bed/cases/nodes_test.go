package cases

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/uffd"
)

// TestNodesAreCoherent counts on random pages from devices of several parts at once. It needs no guest, and runs anywhere.
func TestNodesAreCoherent(t *testing.T) {
	if err := uffd.Check(); err != nil {
		t.Skip(err)
	}
	const pages, rounds, counters = 256, 2000, 4
	nodes := newNodes(t, 2, pages*ident.PageSize)
	for p := range uint64(pages) {
		b := binary.LittleEndian.AppendUint64(nil, p*1000)
		if _, err := nodes[0].ram.WriteAt(b, int64(p*ident.PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	run(nodes)
	counts := make([][pages]uint64, counters)
	var done sync.WaitGroup
	for i := range counters {
		done.Go(func() {
			n, random := nodes[i%len(nodes)], rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				p := random.Uint64N(pages)
				at := int64(p * ident.PageSize)
				err := n.hold(ident.PageNo(p), true, func() error {
					countMu.Lock()
					defer countMu.Unlock()
					var b [8]byte
					if _, err := n.ram.ReadAt(b[:], at); err != nil {
						return err
					}
					binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
					_, err := n.ram.WriteAt(b[:], at)
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				counts[i][p]++
			}
		})
	}
	done.Wait()
	for p := range uint64(pages) {
		want := p * 1000
		for i := range counts {
			want += counts[i][p]
		}
		for _, n := range nodes {
			var b [8]byte
			if _, err := n.ReadAt(b[:], int64(p*ident.PageSize)); err != nil {
				t.Fatal(err)
			}
			if got := binary.LittleEndian.Uint64(b[:]); got != want {
				t.Errorf("page %d at part %d: %d, want %d", p, n.part, got, want)
			}
		}
	}
	for _, n := range nodes {
		n.close()
	}
}

// countMu keeps two devices of one part, which may hold a page together, from counting at once.
var countMu sync.Mutex
