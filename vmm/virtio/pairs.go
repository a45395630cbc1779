package virtio

// PairBytes is the size of the blocks and pages that Pairs is told of.
const PairBytes = 4096

// Pairs is told which pages of guest memory equal which blocks of the disk. Blocks are counted in PairBytes. Calls come from several threads, in
// this order for a request:
//
//	read:                      Reading, the transfer, Equal for each whole page
//	write:  Changing, the transfer, Changed, Equal for each whole page
//	discard, write zeroes: Changing, the change, Changed
type Pairs interface {
	// Reading returns the moment from which on a change of what is read now matters to Equal.
	Reading() (since uint64)
	// Changing says, before it happens, that blocks first to last are written, discarded or zeroed: what they were equal to counts no more.
	Changing(first, last uint64) (begun uint64)
	// Changed says that it is over, well or not. since is for Equal; without alone the blocks may hold something else by now.
	Changed(begun, first, last uint64) (since uint64, alone bool)
	// Equal says that a block held data, which was read into the page of guest memory at addr, or written from it. The guest may have written the
	// page meanwhile: whoever believes in the pair compares.
	Equal(since, block, addr uint64, data []byte)
}

// Paired is a Disk that wants to know.
type Paired interface{ Pairs() Pairs }

// SetPairs says who is told of pairs. The guest must not run yet.
func (b *Block) SetPairs(p Pairs) { b.pairs = p }

// changing does a change of n bytes at off, announced.
func (b *Block) changing(off, n int64, change func() error) (since uint64, alone bool, err error) {
	if b.pairs == nil || n <= 0 {
		return 0, false, change()
	}
	first, last := uint64(off)/PairBytes, uint64(off+n-1)/PairBytes
	begun := b.pairs.Changing(first, last)
	err = change()
	since, alone = b.pairs.Changed(begun, first, last)
	return since, alone && err == nil, err
}

// equal reports the whole blocks of data, which lies at off on the disk, that lie in whole pages of the segments, which hold it from their begin
// on.
func (b *Block) equal(since uint64, segments []segment, off int64, data []byte) {
	if b.pairs == nil {
		return
	}
	for _, s := range segments {
		length := min(int64(s.length), int64(len(data)))
		for at := (-off) & (PairBytes - 1); at+PairBytes <= length; at += PairBytes { // from the first block boundary in the segment on
			if addr := s.addr + uint64(at); addr%PairBytes == 0 {
				b.pairs.Equal(since, uint64(off+at)/PairBytes, addr, data[at:at+PairBytes])
			}
		}
		off, data = off+length, data[length:]
	}
}
