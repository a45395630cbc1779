package lending

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
)

const (
	testMemory = 256 * ident.MiB
	second     = ident.Second
)

// A borrower that falls silent may have taken all that it was told since it spoke: what it may hold beyond its limit is overdue all the same, and until it
// is paged out it counts as held.
func TestSilentBorrowerIsOverdue(t *testing.T) {
	k := Key{VM: 1}
	l := NewLedger(testMemory, "")
	l.Own(0, 0, 0)
	limit, _ := l.Renew(0, k, 1, 0, 0, 64*ident.MiB)
	if limit == 0 {
		t.Fatal("nothing was lent")
	}
	l.Own(second, testMemory, ident.MiB) // all of it is wanted back
	if out := l.Overdue(second + ReturnIn); len(out) != 0 || l.Lent() != limit {
		t.Errorf("%v is overdue at once, %v lent", out, l.Lent())
	}
	if out := l.Overdue(second + ReturnIn + 1); len(out) != 1 || out[0] != k || l.Lent() != 0 {
		t.Errorf("%v is overdue, %v counts as lent", out, l.Lent())
	}
}

// However long it is silent, what it may hold is not promised to others.
func TestSilentBorrowerIsNotForgotten(t *testing.T) {
	k := Key{VM: 1}
	l := NewLedger(testMemory, "")
	l.Own(0, 0, 0)
	limit, _ := l.Renew(0, k, 1, 0, 0, 64*ident.MiB)
	l.Own(3600*second, 0, 0)
	if l.Lent() != limit {
		t.Errorf("%v counts as lent, and it may hold %v", l.Lent(), limit)
	}
	if l.End(k); l.Lent() != 0 {
		t.Error("it is gone, and its loan is not")
	}
}

// Who holds much is lent half as much again, so that a lot is borrowed in few rounds; who needs less gets no more.
func TestStepsGrow(t *testing.T) {
	l := NewLedger(testMemory, "")
	l.Own(0, 0, 0)
	var limits []ident.Bytes
	for n := uint64(1); n <= 5; n++ {
		held := ident.Bytes(0)
		if len(limits) > 0 {
			held = limits[len(limits)-1]
		}
		limit, ok := l.Renew(ident.Micros(n)*second, Key{VM: 1}, n, held, held, 5*ident.MiB)
		if !ok {
			t.Fatal("a new question is old")
		}
		limits = append(limits, limit)
	}
	if limits[0] != ident.MiB || limits[4] != 5*ident.MiB {
		t.Errorf("limits %v", limits)
	}
	if _, ok := l.Renew(9*second, Key{VM: 1}, 5, 0, 0, 0); ok {
		t.Error("an old question is answered")
	}
}
