// The walker tests the memory that two processors of a Linux guest share, for a while by the guest's clock:
//
//	walker SECONDS
//
// Both walk the same pages in turns, and each word that one has written the other must find, and replaces. Then they play ping-pong: over a word of
// memory with futexes, and over two pipes. It prints how often each was done, and a line that begins with BAD for what was not as it should be.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/link/futex"
	"golang.org/x/sys/unix"
)

// sharedBytes is the size of the memory that both walk.
const sharedBytes = 1 << 20

func main() {
	seconds := 1
	if len(os.Args) > 1 {
		seconds, _ = strconv.Atoi(os.Args[1])
	}
	until := time.Now().Add(time.Duration(max(1, seconds)) * time.Second)
	w := walker{pages: make([]uint64, sharedBytes/8)}
	if err := errors.Join(w.pipe(&w.toA), w.pipe(&w.toB)); err != nil {
		fmt.Println("BAD pipes:", err)
		os.Exit(1)
	}
	for round := uint64(0); round == 0 || time.Now().Before(until); round++ {
		w.both(func(who int) { w.walk(who, round) })
		w.both(func(who int) { w.futexes(who, 50) })
		w.both(func(who int) { w.pipes(who, 50) })
		w.rounds++
	}
	if w.bad.Load() != 0 {
		os.Exit(1)
	}
	fmt.Printf("WALKED %d times %d KiB, %d futex and %d pipe turns\n", w.rounds, sharedBytes>>10, w.rounds*50, w.rounds*50)
}

// walker is what both sides share.
type walker struct {
	pages    []uint64
	turn     atomic.Uint32
	toA, toB [2]int // pipes
	rounds   int
	bad      atomic.Int64
}

func (w *walker) pipe(p *[2]int) error {
	return unix.Pipe(p[:])
}

// both runs a side on each processor, and returns when they are done.
func (w *walker) both(side func(who int)) {
	var all sync.WaitGroup
	for who := range 2 {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var set unix.CPUSet
			set.Set(who)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				w.fail("processor %d: %v", who, err)
			}
			side(who)
		})
	}
	all.Wait()
}

func (w *walker) fail(format string, args ...any) {
	if w.bad.Add(1) < 10 {
		fmt.Printf("BAD "+format+"\n", args...)
	}
}

// pattern is what side who writes into word i in a round.
func pattern(who int, round uint64, i int) uint64 {
	x := (round<<33 | uint64(i)<<1 | uint64(who)) * 0x9e3779b97f4a7c15 // 2^64 over the golden ratio, as in Knuth's multiplicative hashing
	return x ^ x>>29
}

// walk goes through the pages by turns with the other side: 0 writes a page, 1 finds that and writes its own, 0 finds that.
func (w *walker) walk(who int, round uint64) {
	const words = 4096 / 8
	for first := 0; first < len(w.pages); first += words {
		page := w.pages[first : first+words]
		if who == 0 {
			w.fill(page, 0, round, first)
			w.pass(0)
			w.await(0)
			w.find(page, 1, round, first)
			continue
		}
		w.await(1)
		w.find(page, 0, round, first)
		w.fill(page, 1, round, first)
		w.pass(1)
	}
}

func (w *walker) fill(page []uint64, who int, round uint64, first int) {
	for i := range page {
		page[i] = pattern(who, round, first+i)
	}
}

func (w *walker) find(page []uint64, who int, round uint64, first int) {
	for i, v := range page {
		if want := pattern(who, round, first+i); v != want {
			w.fail("word %d, round %d: 0x%x, want 0x%x", first+i, round, v, want)
			return
		}
	}
}

// pass gives the other side the turn.
func (w *walker) pass(who int) {
	w.turn.Store(uint32(1 - who))
	futex.Wake(&w.turn)
}

// await waits for the turn.
func (w *walker) await(who int) {
	for w.turn.Load() != uint32(who) {
		futex.Wait(&w.turn, uint32(1-who), time.Minute)
	}
}

// futexes gives the turn to and fro.
func (w *walker) futexes(who, times int) {
	for range times {
		w.await(who)
		w.pass(who)
	}
	if who == 0 { // it is 0's turn again when both are done
		w.await(0)
	}
}

// pipes sends numbers to and fro.
func (w *walker) pipes(who, times int) {
	in, out := w.toA[0], w.toB[1]
	if who == 1 {
		in, out = w.toB[0], w.toA[1]
	}
	var b [8]byte
	for i := range uint64(times) {
		if who == 0 {
			binary.LittleEndian.PutUint64(b[:], i)
			_, err := unix.Write(out, b[:])
			w.check(err)
		}
		_, err := unix.Read(in, b[:])
		w.check(err)
		if v := binary.LittleEndian.Uint64(b[:]); v != i {
			w.fail("pipe: %d, want %d", v, i)
		}
		if who == 1 {
			_, err := unix.Write(out, b[:])
			w.check(err)
		}
	}
}

func (w *walker) check(err error) {
	if err != nil {
		w.fail("pipe: %v", err)
	}
}
