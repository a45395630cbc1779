package worker

import (
	"bytes"
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/srt"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

// imageAndPlane returns an image of so many bytes and a VM part of one server to load it into.
func imageAndPlane(t *testing.T, size int) (*ram.Image, *loader) {
	t.Helper()
	contents := make([]byte, size)
	for i := range contents {
		contents[i] = byte(i>>ident.PageShift + i)
	}
	file, err := ram.SealImage("cellvisor-test", bytes.NewReader(contents), ident.Bytes(size))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	image, err := ram.OpenImage(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(image.Close)
	memory, err := ram.New(ident.MiB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	w := &Worker{plane: &plane{ram: memory, dirty: newDirtyPages(memory.Pages())}}
	return image, &loader{deviceMemory: deviceMemory{w}, images: []*ram.Image{image}}
}

// TestLoaderSharesWholePages: wherever a piece of an image goes, memory is as if it had been written there, and exactly its whole pages are shared if they lie in
// the image as in memory.
func TestLoaderSharesWholePages(t *testing.T) {
	const size = 40*ident.PageSize + 100
	for _, c := range []struct {
		from, n int
		to      int64
		shared  ident.Bytes
	}{
		{0, size, 0, 40 * ident.PageSize},
		{0, size, 5 * ident.PageSize, 40 * ident.PageSize},
		{100, size - 100, 5*ident.PageSize + 100, 39 * ident.PageSize},
		{100, 30 * ident.PageSize, 100, 29 * ident.PageSize},
		{100, size - 100, 0, 0},                                         // not where pages begin
		{0, shareLeastPages*ident.PageSize - 1, 0, 0},                   // too little
		{3, ident.PageSize, 3, 0},                                       // no whole page
		{0, shareLeastPages * ident.PageSize, 0, 16 * ident.PageSize},   // just enough
		{ident.PageSize, 20*ident.PageSize + 1, 0, 20 * ident.PageSize}, // a byte more
	} {
		image, l := imageAndPlane(t, size)
		memory := l.w.plane.ram
		l.w.plane.dirty.on.Store(true)
		piece := image.Bytes()[c.from : c.from+c.n]
		if n, err := l.WriteAt(piece, c.to); n != c.n || err != nil {
			t.Fatalf("%+v: %d bytes, %v", c, n, err)
		}
		got, want := make([]byte, memory.Size()), make([]byte, memory.Size())
		if _, err := memory.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		copy(want[c.to:], piece)
		if !bytes.Equal(got, want) || memory.Shared() != c.shared {
			t.Errorf("%+v: as written: %t, %d bytes shared", c, bytes.Equal(got, want), memory.Shared())
		}
		marked := map[ident.PageNo]bool{}
		l.w.plane.dirty.take(func(page ident.PageNo) { marked[page] = true })
		for page := c.to >> ident.PageShift; page <= (c.to+int64(c.n)-1)>>ident.PageShift; page++ {
			if !marked[ident.PageNo(page)] {
				t.Errorf("%+v: the next checkpoint lacks page %d", c, page)
			}
		}
	}
}

// TestSharedPagesAreNotPaired: a page of an image, even one that the guest has given back since, is never protected, so Go code never waits for a fault of it.
func TestSharedPagesAreNotPaired(t *testing.T) {
	vmmtest.RequireUserfaultfd(t)
	image, l := imageAndPlane(t, 40*ident.PageSize)
	p := l.w.plane
	p.cache = newBlockCache(p)
	if _, err := l.WriteAt(image.Bytes()[:32*ident.PageSize], 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Free(4*ident.PageSize, ident.PageSize); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{7}, ident.PageSize)
	for page, pairs := range map[ident.PageNo]bool{3: false, 4: false, 31: false, 32: true} {
		if _, err := l.deviceMemory.WriteAt(block, int64(page)<<ident.PageShift); err != nil {
			t.Fatal(err)
		}
		if err := p.cache.equal(p.cache.table.Mark(), srt.Block{No: uint64(page)}, page, block); err != nil {
			t.Fatal(err)
		}
		if p.cache.table.Paired(page) != pairs {
			t.Errorf("page %d is paired: %t", page, !pairs)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cache.unwatch(); err != nil {
		t.Error(err)
	}
}
