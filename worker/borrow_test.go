package worker

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

const lentVM = 7

// newTestLender is a lender in this process.
func newTestLender(t *testing.T) *lender {
	t.Helper()
	l := &lender{spec: wire.WorkerSpec{ClusterID: "test-cluster", Server: 2}, log: zerolog.Nop()}
	for range 2 {
		d, err := newDesk(t.TempDir(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		l.desks = append(l.desks, d)
	}
	t.Cleanup(func() {
		l.take(wire.ToLender{})
		for _, d := range l.desks {
			d.port.Close()
			d.disk.Close()
		}
	})
	return l
}

func testTerms(bytes ident.Bytes) wire.LenderLoan {
	return wire.LenderLoan{VM: lentVM, As: 1, Server: 1, Secret: hex.EncodeToString([]byte("secret")), Bytes: bytes, Limit: bytes}
}

// order has the lender lend and returns what the borrower's worker is told.
func order(t *testing.T, l *lender, seq uint64, terms wire.LenderLoan) wire.WorkerLenders {
	t.Helper()
	answer := l.take(wire.ToLender{Loans: []wire.LenderLoan{terms}})
	if answer.Error != "" || len(answer.Loans) != 1 {
		t.Fatalf("%+v", answer)
	}
	return wire.WorkerLenders{Seq: seq, Lenders: []wire.WorkerLender{{As: 1, Server: 2, Name: "b-1", Cell: "b", Addr: answer.Loans[0].Addr, LimitBytes: terms.Limit}}}
}

// newTestBacking is a backing with a paging file of so many pages.
func newTestBacking(t *testing.T, pages int) (*backing, chan error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "paging"))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 16)
	b := newBacking(file, func(err error) { failed <- err })
	b.setFile(ident.Bytes(pages) << ident.PageShift)
	b.plane, err = link.ListenPages(link.PagesConfig{ClusterID: "test-cluster", VM: lentVM, Server: 1, Secret: []byte("secret"), ListenHost: "127.0.0.1", Handler: lenderHandler{}})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.write()
	}()
	t.Cleanup(func() {
		b.mu.Lock()
		b.closed = true
		b.changed.Broadcast()
		b.mu.Unlock()
		<-over
		b.plane.Close()
		file.Close()
	})
	return b, failed
}

func putSlots(t *testing.T, b *backing, from, to int, salt uint64) {
	t.Helper()
	var page [ident.PageSize]byte
	for i := from; i < to; i++ {
		binary.LittleEndian.PutUint64(page[8:], uint64(i)+salt<<32)
		if _, err := b.WriteAt(page[:], int64(i)<<ident.PageShift); err != nil {
			t.Fatal(err)
		}
	}
}

func checkSlots(t *testing.T, b *backing, from, to int, salt uint64) {
	t.Helper()
	var page [ident.PageSize]byte
	for i := from; i < to; i++ {
		if _, err := b.ReadAt(page[:], int64(i)<<ident.PageShift); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(page[8:]); got != uint64(i)+salt<<32 {
			t.Fatalf("slot %d holds %x", i, got)
		}
	}
}

// drained waits until nothing is on its way.
func drained(b *backing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.leaving) > 0 {
		b.changed.Wait()
	}
}

// Pages go to a lender before they go to the file, come back as they were, and move when the lender wants its memory back.
func TestBorrowedPagesComeBack(t *testing.T) {
	const lent, filed = 64, 256
	l := newTestLender(t)
	b, failed := newTestBacking(t, filed)
	terms := testTerms(lent << ident.PageShift)
	if err := b.setLenders(order(t, l, 1, terms)); err != nil {
		t.Fatal(err)
	}
	putSlots(t, b, 0, 200, 1)
	drained(b)
	var s wire.WorkerPaging
	b.stats(&s)
	if s.Lent != lent || s.FileBytes != (200-lent)<<ident.PageShift || s.Loans[0].HeldBytes != lent<<ident.PageShift || s.LendersSeq != 1 {
		t.Fatalf("%+v", s)
	}
	checkSlots(t, b, 0, 200, 1)
	putSlots(t, b, 10, 60, 2) // over the old ones
	drained(b)
	checkSlots(t, b, 10, 60, 2)
	checkSlots(t, b, 60, 200, 1)

	rng := rand.New(rand.NewPCG(1, 2))
	for seq := uint64(2); seq < 30; seq++ { // the limit goes up and down
		terms.Limit = ident.Bytes(rng.IntN(lent+1)) << ident.PageShift
		if err := b.setLenders(order(t, l, seq, terms)); err != nil {
			t.Fatal(err)
		}
		b.tend()
		drained(b)
		s = wire.WorkerPaging{}
		b.stats(&s)
		if s.LendersSeq != seq || len(s.Loans) > 0 && s.Loans[0].HeldBytes > terms.Limit {
			t.Fatalf("limit %v: %+v", terms.Limit, s)
		}
		checkSlots(t, b, 10, 60, 2)
		checkSlots(t, b, 60, 200, 1)
	}
	if err := b.setLenders(wire.WorkerLenders{Seq: 30}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if i%3 == 0 {
			b.Free(uint32(i))
		} else if i >= 60 {
			checkSlots(t, b, i, i+1, 1)
		}
	}
	if len(failed) > 0 {
		t.Fatal(<-failed)
	}
}

// A borrower that does not give back costs the lender disk space only, and its pages are as they were.
func TestWhatIsNotGivenBackGoesToDisk(t *testing.T) {
	l := newTestLender(t)
	b, _ := newTestBacking(t, 0)
	terms := testTerms(100 << ident.PageShift)
	if err := b.setLenders(order(t, l, 1, terms)); err != nil {
		t.Fatal(err)
	}
	putSlots(t, b, 0, 100, 1)
	drained(b)
	terms.Limit, terms.PageOut = 20<<ident.PageShift, true
	state := l.take(wire.ToLender{Loans: []wire.LenderLoan{terms}}).Loans[0]
	if state.InMemory != 20<<ident.PageShift || state.OnDisk != 80<<ident.PageShift {
		t.Fatalf("%+v", state)
	}
	checkSlots(t, b, 0, 100, 1)
	putSlots(t, b, 50, 60, 2)
	drained(b)
	checkSlots(t, b, 50, 60, 2)
	if _, err := b.WriteAt(make([]byte, ident.PageSize), 100<<ident.PageShift); err == nil || !strings.Contains(err.Error(), "nobody lends") {
		t.Errorf("a page that has no room: %v", err)
	}
}

// Pages that a lender lost, or never had, are lost at once, and the reason names its cell.
func TestLostLenderLosesPages(t *testing.T) {
	l := newTestLender(t)
	b, failed := newTestBacking(t, 0)
	terms := testTerms(100 << ident.PageShift)
	m := order(t, l, 1, terms)
	if err := b.setLenders(m); err != nil {
		t.Fatal(err)
	}
	putSlots(t, b, 0, 10, 1)
	drained(b)
	l.desks[0].loan.mu.Lock()
	l.desks[0].loan.cut(5)
	l.desks[0].loan.mu.Unlock()
	checkSlots(t, b, 0, 5, 1)
	_, err := b.ReadAt(make([]byte, ident.PageSize), 7<<ident.PageShift)
	if err == nil || !strings.Contains(err.Error(), "memory borrowed from server b-1 of cell b is lost") {
		t.Fatal(err)
	}
	m.Seq, m.Lenders[0].Addr = 2, "127.0.0.1:1" // another process lends there now
	if err := b.setLenders(m); err == nil {
		t.Error("pages went with a process, and nobody says so")
	}
	if err := <-failed; !strings.Contains(err.Error(), "the process that held it has ended") {
		t.Error(err)
	}
}

// What comes late is refused: the frame may have been given to another page since.
func TestLatePutIsRefused(t *testing.T) {
	o := &loan{terms: testTerms(ident.MiB), last: 7}
	body := append(binary.LittleEndian.AppendUint64([]byte{wire.LendPut}, 7), make([]byte, wire.LendFrameBytes)...)
	if status, _ := o.serve(body, new([ident.PageSize]byte)); status != wire.DeviceBad {
		t.Error("an old put was heeded")
	}
	for _, bad := range [][]byte{nil, {wire.LendGet}, {9, 9, 9, 9, 9}, body[:20], append([]byte{wire.LendCut}, body[1:9]...), {wire.LendGet, 255, 255, 255, 255}} {
		if status, _ := o.serve(bad, new([ident.PageSize]byte)); status != wire.DeviceBad {
			t.Errorf("%x was taken", bad)
		}
	}
}

// A page that was sent for before it is read is right whatever becomes of its frame meanwhile, and another one is not taken for it.
func TestExpectedPagesAreRight(t *testing.T) {
	const lent = 64
	l := newTestLender(t)
	b, _ := newTestBacking(t, lent)
	terms := testTerms(lent << ident.PageShift)
	if err := b.setLenders(order(t, l, 1, terms)); err != nil {
		t.Fatal(err)
	}
	putSlots(t, b, 0, 40, 1)
	drained(b)
	for i := range uint32(40) {
		b.Expect(i)
		checkSlots(t, b, int(i), int(i)+1, 1)
	}
	b.Expect(3)
	checkSlots(t, b, 4, 5, 1) // another one
	checkSlots(t, b, 3, 4, 1)
	b.Expect(5)
	putSlots(t, b, 5, 6, 2) // written anew
	checkSlots(t, b, 5, 6, 2)
	b.Expect(39)
	terms.Limit = 20 << ident.PageShift
	if err := b.setLenders(order(t, l, 2, terms)); err != nil { // moved away, to the file
		t.Fatal(err)
	}
	putSlots(t, b, 60, 64, 1)
	drained(b)
	checkSlots(t, b, 39, 40, 1)
	checkSlots(t, b, 60, 64, 1)
	b.Expect(200) // nothing was written there
	if _, err := b.ReadAt(make([]byte, ident.PageSize), 200<<ident.PageShift); err == nil {
		t.Error("there is a page that was never written")
	}
}
