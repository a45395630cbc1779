package locality

import (
	"math/rand/v2"

	"github.com/cellvisor/cellvisor/ident"
)

// Phase is what vCPUs do for a while.
type Phase uint8

// The phases.
const (
	Private    Phase = iota // each changes pages of its own, that another had before
	Fill                    // one writes a table
	Shared                  // all look things up in it
	Pipe                    // one fills a buffer, another reads it
	Lock                    // two change records that a lock protects
	Migratory               // a block of pages goes from one vCPU to the next, each changes all of it
	Hot                     // all change the same few pages
	phaseKinds              // how many there are
)

var phaseNames = [...]string{"private", "fill", "shared", "pipe", "lock", "migratory", "hot"}

// String names the phase.
func (p Phase) String() string { return phaseNames[p] }

// Sizes in pages, and where things are.
const (
	ownPages    = 128
	tablePages  = 256
	bufferPages = 6
	recordPages = 4
	blockPages  = 16
	hotPages    = 3
	maxVCPUs    = 8
	apart       = 32 // of what has nothing to do with each other
	tableAt     = maxVCPUs * ownPages
	bufferAt    = tableAt + tablePages
	recordAt    = bufferAt + apart
	filledAt    = recordAt + apart
	takenAt     = filledAt + apart
	lockAt      = takenAt + apart
	blockAt     = lockAt + apart
	turnAt      = blockAt + apart
	hotAt       = turnAt + apart
	allPages    = hotAt + apart
)

// operation is one access to a page.
type operation struct {
	page  ident.PageNo
	write bool
}

type programState uint8

const (
	programRuns programState = iota
	programPolls
	programEnds
)

// program is what one vCPU does in one phase.
type program interface {
	// next is the next operation.
	next() (operation, programState)
	// sees is told what the page holds, and returns what it is to hold if it is written.
	sees(op operation, value uint64) (uint64, bool)
}

// programOf is what vCPU v of n does in a phase; turn says whose turn it is to play which role.
func (w *world) programOf(v, n, turn int, phase Phase) program {
	scale := w.shape.Scale
	rng := rand.New(rand.NewPCG(w.rng.Uint64(), uint64(v)))
	items := uint64(scale) * 10
	switch first, second := turn%n, (turn+1)%n; {
	case phase == Private:
		return &walker{rng: rng, first: ident.PageNo((v + turn) % n * ownPages), pages: ownPages, left: scale * ownPages * 8, write: true}
	case phase == Fill && v == first:
		return &walker{first: tableAt, fill: tablePages}
	case phase == Shared:
		return &walker{rng: rng, first: tableAt, pages: tablePages, left: scale * tablePages}
	case phase == Pipe && v == first:
		at := w.latest[filledAt]
		return &piper{mine: filledAt, theirs: takenAt, write: true, item: at, last: at + items}
	case phase == Pipe && v == second:
		at := w.latest[takenAt]
		return &piper{mine: takenAt, theirs: filledAt, item: at, last: at + items}
	case phase == Lock && (v == second || v == (second+1)%n):
		return &locker{left: scale * 200}
	case phase == Migratory:
		at := w.latest[turnAt]
		return &migrant{mine: (uint64(v) + uint64(n) - at%uint64(n)) % uint64(n), all: uint64(n), first: at, left: scale * 2}
	case phase == Hot:
		return &walker{rng: rng, first: hotAt, pages: hotPages, left: scale * 100, write: true, rests: true}
	}
	return rester{}
}

// walker makes so many accesses to random pages, writing each or none; first it writes fill pages in order.
type walker struct {
	rng   *rand.Rand
	first ident.PageNo
	pages int
	left  int
	write bool
	fill  int
	rests bool // after each access
	now   bool
}

func (p *walker) next() (operation, programState) {
	switch {
	case p.fill > 0:
		p.fill--
		return operation{page: p.first + ident.PageNo(p.fill), write: true}, programRuns
	case p.left == 0:
		return operation{}, programEnds
	case p.now:
		p.now = false
		return operation{}, programPolls
	}
	p.left--
	p.now = p.rests
	return operation{page: p.first + ident.PageNo(p.rng.IntN(p.pages)), write: p.write}, programRuns
}

func (p *walker) sees(op operation, value uint64) (uint64, bool) { return value + 1, op.write }

// piper is one end of a pipe: it waits for the other's counter, works on the buffer, raises its own.
type piper struct {
	mine, theirs ident.PageNo
	write        bool   // it fills
	item, last   uint64 // of all rounds
	seen         bool   // the other has got so far
	at           int    // page of the buffer
	polled       bool
}

func (p *piper) next() (operation, programState) {
	switch {
	case p.item == p.last:
		return operation{}, programEnds
	case !p.seen && p.polled:
		p.polled = false
		return operation{}, programPolls
	case !p.seen:
		return operation{page: p.theirs}, programRuns
	case p.at < bufferPages:
		return operation{page: bufferAt + ident.PageNo(p.at), write: p.write}, programRuns
	}
	return operation{page: p.mine, write: true}, programRuns
}

func (p *piper) sees(op operation, value uint64) (uint64, bool) {
	switch {
	case op.page == p.theirs && !p.seen:
		want := p.item
		if !p.write {
			want++ // who reads waits for the item itself
		}
		p.seen = value >= want
		p.polled = !p.seen
		return 0, false
	case op.page == p.mine:
		p.seen, p.at = false, 0
		p.item++
		return p.item, true
	}
	p.at++
	return value + 1, op.write
}

// locker takes a lock, changes the records, lets go, and works elsewhere for a while.
type locker struct {
	left   int
	has    bool
	at     int
	polled bool
	free   bool // as it was seen
}

func (p *locker) next() (operation, programState) {
	switch {
	case p.left == 0:
		return operation{}, programEnds
	case p.polled:
		p.polled = false
		return operation{}, programPolls
	case p.has && p.at < recordPages:
		return operation{page: recordAt + ident.PageNo(p.at), write: true}, programRuns
	case p.has || p.free:
		return operation{page: lockAt, write: true}, programRuns
	}
	return operation{page: lockAt}, programRuns
}

func (p *locker) sees(op operation, value uint64) (uint64, bool) {
	switch {
	case op.page != lockAt:
		p.at++
		return value + 1, true
	case p.has:
		p.has, p.at, p.polled = false, 0, true
		p.left--
		return 0, true
	case op.write && value == 0:
		p.has, p.free = true, false
		return 1, true
	}
	p.free = value == 0 && !op.write
	p.polled = !p.free
	return 0, false
}

// migrant waits for its turn, changes the block, and passes the turn on.
type migrant struct {
	mine, all uint64 // its place in the round, and of how many
	first     uint64 // the turn's number when the phase began
	left      int
	turns     uint64
	seen      bool
	polled    bool
	at        int
}

func (p *migrant) next() (operation, programState) {
	switch {
	case p.left == 0:
		return operation{}, programEnds
	case p.polled:
		p.polled = false
		return operation{}, programPolls
	case p.seen && p.at < blockPages:
		return operation{page: blockAt + ident.PageNo(p.at), write: true}, programRuns
	}
	return operation{page: turnAt, write: p.seen}, programRuns
}

func (p *migrant) sees(op operation, value uint64) (uint64, bool) {
	switch {
	case op.page != turnAt:
		p.at++
		return value + 1, true
	case p.seen:
		p.seen, p.at = false, 0
		p.turns++
		p.left--
		return value + 1, true
	}
	p.seen = value == p.first+p.mine+p.turns*p.all
	p.polled = !p.seen
	return 0, false
}

// rester does nothing.
type rester struct{}

func (rester) next() (operation, programState)       { return operation{}, programEnds }
func (rester) sees(operation, uint64) (uint64, bool) { return 0, false }
