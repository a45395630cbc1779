package recover

import (
	"slices"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/cluster"
)

// diskBlocks is the size of the simulated disks. A block holds the number of the write that it has from; 0 is what it begins with.
const diskBlocks = 6

type contents [diskBlocks]uint32

// image is a copy of a disk on a server. What it does is what package disk promises, and tests with files that fail: a batch is there as a whole or not
// at all, what was flushed survives a loss of power, of what was not a beginning does, and a block that is not as it was written is noticed when it is
// read, or when the copy is opened to be brought into step.
type image struct {
	generation uint64
	flushed    contents
	tail       [][]blockWrite // batches that are not flushed
	bad        [diskBlocks]bool
	lost       [diskBlocks]bool // of bad: as home's was when they were compared
	number     uint64           // of the last checkpoint in it
	backup     *contents        // of earlier times, perhaps brought back
	older      uint64           // and its generation
}

type blockWrite struct {
	block int
	value uint32
}

func (m *image) now() contents {
	c := m.flushed
	for _, batch := range m.tail {
		for _, w := range batch {
			c[w.block] = w.value
		}
	}
	return c
}

func (m *image) commit(batch []blockWrite, sync bool) {
	for _, w := range batch {
		m.bad[w.block], m.lost[w.block] = false, false
	}
	if len(batch) > 0 {
		m.tail = append(m.tail, slices.Clone(batch))
	}
	if sync {
		m.flushed, m.tail = m.now(), nil
	}
}

// losePower leaves a beginning of what was not flushed.
func (m *image) losePower(batches int) {
	m.tail = m.tail[:min(batches, len(m.tail))]
	m.flushed, m.tail = m.now(), nil
}

// place names a copy.
type place struct {
	server ident.ServerID
	dir    string
}

// copyAt returns a server's copy, which it makes if there is none.
func (w *world) copyAt(s *cluster.Server, dir string) *image {
	p := place{s.ID, dir}
	if w.images[p] == nil {
		w.images[p] = &image{}
	}
	return w.images[p]
}

// places lists all copies in a fixed order.
func (w *world) places() []place {
	out := make([]place, 0, len(w.images))
	for p := range w.images {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b place) int {
		if a.server != b.server {
			return int(a.server) - int(b.server)
		}
		if a.dir < b.dir {
			return -1
		}
		return 1
	})
	return out
}

// losePower takes the power of servers away, and that of their disks.
func (w *world) losePower(all []*cluster.Server) {
	if w.Calm() {
		return
	}
	for _, s := range all {
		w.CrashAll(s, true)
	}
	for _, p := range w.places() {
		if slices.ContainsFunc(all, func(s *cluster.Server) bool { return s.ID == p.server }) {
			w.images[p].losePower(w.Rand().IntN(4))
		}
	}
}

// tamper damages the copies of a server that is down: bits rot, or an operator brings an old backup back.
func (w *world) tamper(s *cluster.Server) {
	if s.Core != nil || w.Calm() || len(w.On(s)) > 0 {
		return
	}
	for _, p := range w.places() {
		m := w.images[p]
		switch {
		case p.server != s.ID:
		case w.Chance(500) && m.backup != nil && m.older < m.generation: // one of the same use cannot be told from what it should be
			w.Tracef("server %d: the copy of %s is replaced by that of generation %d", s.ID, p.dir, m.older)
			m.generation, m.flushed, m.tail, m.bad, m.lost, m.number = m.older, *m.backup, nil, [diskBlocks]bool{}, [diskBlocks]bool{}, 0
		default:
			for range 1 + w.Rand().IntN(3) {
				m.bad[w.Rand().IntN(diskBlocks)] = true
			}
			w.Tracef("server %d: blocks of the copy of %s are damaged", s.ID, p.dir)
		}
	}
}

// backUp keeps all copies as they are now.
func (w *world) backUp() {
	for _, p := range w.places() {
		m := w.images[p]
		c := m.now()
		m.backup, m.older = &c, m.generation
	}
}
