package layers

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// The twin keeps the whole history: every write with the cut that followed it. What the image has must be exactly the writes up to the last cut that was
// said to be safe, what the guest reads exactly the last write, and a checkpoint that is applied to a copy which has the former safe one must make it
// equal to what the guest read at the cut.
func TestAgainstHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const blocks = 5
		d := New()
		var image, guest, mirror [blocks]byte
		type cut struct {
			number uint64
			at     [blocks]byte
			ships  map[uint64]byte
		}
		var cuts []cut
		number := uint64(0)
		d.Hold(true)
		d.Note(true)
		put := func(ws []Write) {
			for _, w := range ws {
				image[w.Block] = w.Data[0]
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				b, v := rapid.Uint64Range(0, blocks-1).Draw(t, "block"), rapid.Byte().Draw(t, "value")
				guest[b] = v
				if d.Write(map[uint64][]byte{b: {v}}) {
					t.Fatal("a write goes through though writes are kept back")
				}
			},
			"cut": func(t *rapid.T) {
				number++
				c := cut{number, guest, map[uint64]byte{}}
				for _, b := range d.Cut(number) {
					c.ships[b] = guest[b]
				}
				cuts = append(cuts, c)
			},
			"safe": func(t *rapid.T) {
				if len(cuts) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(cuts)-1).Draw(t, "which")
				c := cuts[i]
				cuts = cuts[i+1:]
				for b, v := range c.ships { // the checkpoints between came to nothing: this one has their blocks, too
					mirror[b] = v
				}
				put(d.Committed(c.number))
				if image != c.at || mirror != c.at {
					t.Fatalf("cut %d of % x: the image has % x, the mirror % x", c.number, c.at, image, mirror)
				}
			},
			"": func(t *rapid.T) {
				if err := d.Check(); err != nil {
					t.Fatal(err)
				}
				for b := range uint64(blocks) {
					if got, ok := d.Find(b); ok && !bytes.Equal(got, guest[b:b+1]) || !ok && image[b] != guest[b] {
						t.Fatalf("block %d reads % x or %x, % x was written", b, got, image[b], guest[b])
					}
					if d.Settled(b) && mirror[b] != image[b] {
						t.Fatalf("block %d counts as settled, the mirror has %x, the image %x", b, mirror[b], image[b])
					}
				}
			},
		})
		put(d.Hold(false))
		if image != guest {
			t.Fatalf("after the end of keeping back the image has % x, % x was written", image, guest)
		}
		if !d.Write(map[uint64][]byte{0: {1}}) || d.Check() != nil {
			t.Fatal("a write does not go through")
		}
	})
}
