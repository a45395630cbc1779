package worker

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// packed counts what became of a share's pages.
type packed struct {
	full, zero, changed, same int
	onDisk                    int // left to the standbys' disks
	bytes                     int // on the wire, to one standby
}

// pack turns an arena into records. A page that was in before, the arena of the checkpoint that every standby holds, travels as what has changed
// since, or not at all. before may be nil.
func (s *share) pack(a, before *arena) (n packed) {
	var diff []byte
	at := 0 // in before.pages
	disk := a.disk
	for i, page := range a.pages {
		b := a.page(i)
		var left *onDisk
		if len(disk) > 0 && disk[0].at == i {
			left, disk = &disk[0], disk[1:]
		}
		for before != nil && at < len(before.pages) && before.pages[at] < page {
			at++
		}
		if before != nil && at < len(before.pages) && before.pages[at] == page {
			var small bool
			if diff, small = appendDiff(diff[:0], before.page(at), b); small && (left == nil || len(diff) == 0) {
				if len(diff) == 0 {
					n.same++
				} else {
					n.changed++
					s.add(recordDiff, uint64(page), diff)
				}
				continue
			}
		}
		if bytes.Equal(b, zeroPage[:]) {
			n.zero++
			s.add(recordZero, uint64(page), nil)
			continue
		}
		if left != nil {
			n.onDisk++
			s.addOnDisk(page, left.block, b)
			continue
		}
		n.full++
		s.add(recordPage, uint64(page), b)
	}
	return n
}

// A difference is a run of pieces: offset 2 | length 2 | bytes, offsets and lengths multiples of diffWord, rising. Pieces say what is there
// now, so applying one twice changes nothing.
const (
	diffWord  = 8
	diffBlock = 256  // compared at once
	diffLimit = 1024 // a larger one is not worth it: the page itself, compressed, is about as small
)

// appendDiff appends what makes now out of old. small is false if that is more than diffLimit bytes.
func appendDiff(dst, old, now []byte) (diff []byte, small bool) {
	piece, end := -1, 0 // start of the open piece in dst, and in the page the end of the last one
	for block := 0; block < ident.PageSize; block += diffBlock {
		if bytes.Equal(old[block:block+diffBlock], now[block:block+diffBlock]) {
			continue
		}
		for at := block; at < block+diffBlock; at += diffWord {
			if binary.LittleEndian.Uint64(old[at:]) == binary.LittleEndian.Uint64(now[at:]) {
				continue
			}
			if piece < 0 || at != end {
				piece = len(dst)
				dst = append(dst, byte(at), byte(at>>8), 0, 0)
			}
			dst = append(dst, now[at:at+diffWord]...)
			end = at + diffWord
			binary.LittleEndian.PutUint16(dst[piece+2:], uint16(len(dst)-piece-4))
			if len(dst) > diffLimit {
				return dst, false
			}
		}
	}
	return dst, true
}

// patch applies a difference to a page.
func patch(page, diff []byte) error {
	for len(diff) > 0 {
		if len(diff) < 4 {
			return fmt.Errorf("%w: difference is cut short", errBadShare)
		}
		at, n := int(binary.LittleEndian.Uint16(diff)), int(binary.LittleEndian.Uint16(diff[2:]))
		diff = diff[4:]
		if n > len(diff) || at+n > len(page) {
			return fmt.Errorf("%w: difference of %d bytes at %d", errBadShare, n, at)
		}
		copy(page[at:], diff[:n])
		diff = diff[n:]
	}
	return nil
}
