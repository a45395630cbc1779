package locality

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// A request goes from who asks to the directory, from there to who has the page, from there to who asked. A directory at one of the two saves one message on that
// way, or both if nobody had the page. A region's directory goes to another part when as many messages would have been saved as going costs: its own, and the time
// in which requests wait, half a millisecond at 25 us a message. Each move doubles the price for the next one for a while.
const (
	homePrice   = 20
	homeBlunt   = 4 // the same under the policy Rehome, which is never patient
	homesSize   = 256
	homePatient = 8
	homeForgive = 16 // ages, four seconds, after which a directory is half as patient
)

// homes counts, at the directories that are at one part, what it would save to have them elsewhere. A region has one candidate at a time: another takes its place
// when it is asked for as often.
type homes struct {
	table [homesSize]homeRegion
	age   uint32
	page  ident.PageNo // a wish: its region
	to    ident.Part
	wish  bool
}

type homeRegion struct {
	no       uint64 // first page, plus one; 0: unused
	debt     int32  // messages that candidate would have saved
	who      ident.Part
	patience uint8 // the price is doubled so often
	moves    uint32
}

// ask takes in a request.
func (h *homes) ask(t *mem.Traffic, blunt bool) {
	r := &h.table[(uint64(t.Page)*0x9e3779b97f4a7c15>>40)%homesSize]
	if r.no != uint64(t.Page)+1 {
		if r.debt > 1 {
			r.debt--
			return
		}
		*r = homeRegion{no: uint64(t.Page) + 1, who: t.Peer}
	}
	if t.Moves != r.moves { // it has come here
		r.who, r.debt, r.moves, r.patience = t.Peer, 0, t.Moves, uint8(min(t.Moves, homePatient))
	}
	now := apart(t.Peer, t.At) + apart(t.At, t.Holder)
	switch gain := now - apart(t.Peer, r.who) - apart(r.who, t.Holder); {
	case gain != 0:
		r.debt += gain
	case now > 1: // somebody else would save something
		r.debt--
	}
	if r.debt <= 0 {
		r.who, r.debt = t.Peer, 0
	}
	price := int32(homePrice) << r.patience
	if blunt {
		price = homeBlunt
	}
	if r.debt >= price && r.who != t.At {
		h.page, h.to, h.wish = t.Page, r.who, true
		r.debt = 0
	}
}

func apart(a, b ident.Part) int32 {
	if a == b {
		return 0
	}
	return 1
}

// fade lets debts and patience fade.
func (h *homes) fade() {
	h.age++
	for i := range h.table {
		r := &h.table[i]
		r.debt -= r.debt / 4
		if h.age%homeForgive == 0 && r.patience > 0 {
			r.patience--
		}
	}
}

// Rehome is a wish that a page's region should have its directory elsewhere; false if there is none. It is told once.
func (o *Observer) Rehome() (page ident.PageNo, to ident.Part, ok bool) {
	ok, o.homes.wish = o.homes.wish, false
	return o.homes.page, o.homes.to, ok
}

// Rehomes tells whether directories go to where that saves messages.
func (p Policy) Rehomes() bool { return p == Rehome || p == Auto }
