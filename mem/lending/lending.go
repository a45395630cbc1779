// Package lending decides who lends memory to whom: Cellular Disco's rules, scaled to a server's size. It is pure; server's lendings run it, and
// the simulator (sim/lending).
//
// A borrower's part asks each lender that it has, or would have, about once a second: so much I hold there, so much I want to hold. The answer is a
// limit. There is no other message: a limit below what is held is a recall.
//
//	borrower                              lender
//	short of memory: Plan ---held, want--> Renew: has plenty, lends a chunk more
//	pages go there, up to the limit <--limit--
//	                      ---held, want--> Renew: short itself, lends less
//	moves pages away      <--limit--
//	                      ---held-->       has its memory back; if that takes too long it pages what it holds for others (Overdue)
//
// # Rules
//
//   - A server lends while it has more than a thirty-second of its memory free (the paper: 32 MB of a gigabyte), and wants back when less than a
//     sixty-fourth is (16 MB).
//   - A borrower keeps a chunk, a two-hundred-fifty-sixth (4 MB), more than it holds at each server that it prefers: those of cells that the VM depends
//     on anyway.
//   - Only for a VM that does not fit those cells it asks others: a VM that fits never comes to depend on another cell by borrowing.
//
// # Invariants
//
//   - What a server's own parts hold, and what it has promised others or still holds for them, is no more than its memory, but for what its own
//     parts took since: then it recalls.
//   - A borrower that answers gives back what was recalled; one that does not costs the lender disk space only.
package lending

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Thresholds of a server.
type Thresholds struct {
	Short  ident.Bytes // less is free: take back
	Plenty ident.Bytes // more is free: lend
	Chunk  ident.Bytes // at a time
}

// Of returns the thresholds of a server with so much memory.
func Of(memory ident.Bytes) Thresholds {
	return Thresholds{Short: memory / 64, Plenty: memory / 32, Chunk: max(memory/256, ident.MiB)}
}

// step is how much is lent at a time to who holds so much: at least a chunk, and half as much again, so that a lot is borrowed in seconds. The paper's
// cells ask for 4 MB whenever they are short of that.
func step(chunk, held ident.Bytes) ident.Bytes { return max(chunk, held/2) }

// Timing.
const (
	RenewEvery = ident.Second      // a borrower asks
	ReturnIn   = 5 * ident.Second  // a borrower gives back what was recalled; after that the lender helps itself
	Forgotten  = 60 * ident.Second // without a question from who has never come to hold anything, and is not going to
	AskAgain   = 3 * ident.Second  // a lender that had nothing
)

// Canaries lists the bugs that can be planted, for proving that the simulator finds them.
var Canaries = []string{"lend-too-much", "foreign-cell", "no-recall"}

// Key names a borrower: a VM's part.
type Key struct {
	VM   ident.VMID
	Part ident.Part
}

func (k Key) compare(o Key) int { return cmp.Or(cmp.Compare(k.VM, o.VM), cmp.Compare(k.Part, o.Part)) }

// Loan is what one borrower has.
type Loan struct {
	Key
	Limit    ident.Bytes
	Held     ident.Bytes // as the borrower said last
	Paged    bool        // the lender has paged it out, being overdue
	number   uint64      // of the last question
	told     ident.Bytes // the most that the borrower may take for its limit
	renewed  ident.Micros
	recalled ident.Micros // since when Held or told is above Limit; 0: neither is
}

// Most is how much the borrower may hold at this moment: what was lent was more before, and it may not know yet.
func (l *Loan) Most() ident.Bytes { return max(l.told, l.Held, l.Limit) }

// Renewed is when the borrower asked last.
func (l *Loan) Renewed() ident.Micros { return l.renewed }

// costs is how much of the lender's memory a loan takes.
func (l *Loan) costs() ident.Bytes {
	if l.Paged {
		return l.Limit
	}
	return max(l.told, l.Held)
}

// Ledger is what a server lends.
type Ledger struct {
	canary string
	memory ident.Bytes
	used   ident.Bytes // by its own parts
	wanted bool        // its own parts want more than there is
	loans  []Loan      // by Key
}

// NewLedger returns the ledger of a server that lends nothing yet.
func NewLedger(memory ident.Bytes, canary string) *Ledger {
	return &Ledger{memory: memory, canary: canary}
}

// Adopt takes in a loan that an earlier ledger of this server made.
func (l *Ledger) Adopt(now ident.Micros, k Key, limit, most, held ident.Bytes) {
	if i, found := l.find(k); !found {
		l.loans = slices.Insert(l.loans, i, Loan{Key: k, Limit: limit, told: most, Held: held, renewed: now})
		l.note(now)
	}
}

// Lent is how much memory others may hold here, or still do.
func (l *Ledger) Lent() (sum ident.Bytes) {
	for i := range l.loans {
		sum += l.loans[i].costs()
	}
	return sum
}

// Loans returns the loans, by borrower.
func (l *Ledger) Loans() []Loan { return l.loans }

func (l *Ledger) free() ident.Bytes { return l.memory - min(l.memory, l.used+l.Lent()) }

// Own takes in what the server's own parts hold, and how much more they could use. If that is not free it is taken back from others, first from those
// who may hold most.
func (l *Ledger) Own(now ident.Micros, used, missing ident.Bytes) {
	l.used, l.wanted = used, missing > 0
	l.loans = slices.DeleteFunc(l.loans, func(o Loan) bool { return o.Limit == 0 && o.told == 0 && o.Held == 0 })
	if l.canary == "no-recall" {
		return
	}
	need := used + missing
	if missing > 0 {
		need += Of(l.memory).Short
	}
	promised := ident.Bytes(0) // by limits: a recall that is under way counts as done
	for i := range l.loans {
		promised += l.loans[i].Limit
	}
	for promised > 0 && need+promised > l.memory {
		most := slices.MaxFunc(l.loans, func(a, b Loan) int { return cmp.Or(cmp.Compare(a.Limit, b.Limit), b.compare(a.Key)) })
		i, _ := l.find(most.Key)
		less := min(step(Of(l.memory).Chunk, most.Limit), most.Limit)
		l.loans[i].Limit -= less
		promised -= less
	}
	l.note(now)
}

func (l *Ledger) find(k Key) (int, bool) {
	return slices.BinarySearchFunc(l.loans, k, func(o Loan, k Key) int { return o.compare(k) })
}

// note remembers since when borrowers hold too much, or may for all that is known: one that fell silent has perhaps taken all that it was told.
func (l *Ledger) note(now ident.Micros) {
	for i := range l.loans {
		switch o := &l.loans[i]; {
		case max(o.told, o.Held) <= o.Limit:
			o.recalled, o.Paged = 0, false
		case o.recalled == 0:
			o.recalled = now
		}
	}
}

// Renew answers a borrower: how much it may hold here. has is the limit that it goes by until it has the answer, which it does not take for true if
// it has asked again since. Until it asks again it may hold what it was told, whatever was decided here meanwhile. Its questions have rising
// numbers; false: this one is old, and gets no answer.
func (l *Ledger) Renew(now ident.Micros, k Key, number uint64, has, held, want ident.Bytes) (ident.Bytes, bool) {
	i, found := l.find(k)
	if !found {
		l.loans = slices.Insert(l.loans, i, Loan{Key: k})
	}
	o := &l.loans[i]
	if number <= o.number {
		return 0, false
	}
	o.number = number
	o.Held, o.told, o.renewed = held, max(has, o.Limit), now
	t := Of(l.memory)
	switch {
	case want <= o.Limit:
		o.Limit = want
	case l.canary == "lend-too-much":
		o.Limit += t.Chunk
	case !l.wanted && l.free() >= t.Plenty+t.Chunk:
		o.Limit += min(step(t.Chunk, o.Limit), want-o.Limit, l.free()-t.Plenty)
	}
	o.told = max(has, o.Limit)
	l.note(now)
	return o.Limit, true
}

// End says that a borrower holds nothing any more.
func (l *Ledger) End(k Key) {
	l.loans = slices.DeleteFunc(l.loans, func(o Loan) bool { return o.Key == k })
}

// Overdue returns the borrowers who were told to give back more than ReturnIn ago and have not: what they hold is to be paged out here.
func (l *Ledger) Overdue(now ident.Micros) (out []Key) {
	for i := range l.loans {
		if o := &l.loans[i]; o.recalled != 0 && now-o.recalled > ReturnIn && !o.Paged {
			o.Paged = true
			out = append(out, o.Key)
		}
	}
	return out
}
