package virtio

// PairBytes is the size of the blocks and pages that Pairs is told of.
const PairBytes = 4096

// Pairs is told which pages of guest memory equal which blocks of the disk. Calls come between the transfer and the moment at which the guest
// hears of it, from several threads.
type Pairs interface {
	// Equal says that the page of guest memory at addr and a block, counted in PairBytes, have the same contents now: all of the block was
	// read into the page, or written from it.
	Equal(block, addr uint64)
	// Changed says, before it happens, that blocks first to last are written, discarded or zeroed: what they were equal to counts no more.
	Changed(first, last uint64)
}

// SetPairs says who is told of pairs. The guest must not run yet.
func (b *Block) SetPairs(p Pairs) { b.pairs = p }

// changes announces a change of n bytes at off.
func (b *Block) changes(off, n int64) {
	if b.pairs != nil && n > 0 {
		b.pairs.Changed(uint64(off)/PairBytes, uint64(off+n-1)/PairBytes)
	}
}

// equal reports the whole blocks among n bytes at off that lie in whole pages of the segments, which hold the same bytes from their begin on.
func (b *Block) equal(segments []segment, off, n int64) {
	if b.pairs == nil {
		return
	}
	for _, s := range segments {
		length := min(int64(s.length), n)
		for at := (-off) & (PairBytes - 1); at+PairBytes <= length; at += PairBytes { // from the first block boundary in the segment on
			if addr := s.addr + uint64(at); addr%PairBytes == 0 {
				b.pairs.Equal(uint64(off+at)/PairBytes, addr)
			}
		}
		off, n = off+length, n-length
	}
}
