package mem

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// cluster is the cores of one VM with a network that loses nothing and keeps order.
type cluster struct {
	tb    testing.TB
	cores []*Core
	queue []Event
	now   ident.Micros
}

func newCluster(tb testing.TB, parts int, cfg Config) *cluster {
	c := &cluster{tb: tb}
	var members ident.PartSet
	for i := range parts {
		cfg.Self = ident.Part(i)
		c.cores = append(c.cores, New(cfg))
		members = members.Set(cfg.Self)
	}
	for i := range parts {
		c.step(i, Event{Kind: EventMembers, Epoch: 1, Members: members, Fresh: true})
	}
	return c
}

func (c *cluster) step(part int, ev Event) {
	c.cores[part].Step(c.now, ev)
	c.collect(part)
}

func (c *cluster) collect(part int) {
	effects := c.cores[part].Effects()
	for i := range effects {
		if effects[i].Kind == EffectSend {
			c.queue = append(c.queue, Event{Kind: EventMessage, Msg: effects[i].Msg, Body: effects[i].Body})
		}
	}
}

// settle delivers messages until there are none.
func (c *cluster) settle() {
	for i := 0; i < len(c.queue); i++ {
		ev := c.queue[i]
		c.step(int(ev.Msg.To), ev)
	}
	c.queue = c.queue[:0]
}

func (c *cluster) access(part int, page ident.PageNo, write bool) {
	c.step(part, Event{Kind: EventFault, Page: page, Write: write})
	c.settle()
}

// TestStepDoesNotAllocate: the hot paths at requester, directory and holder, once tables have grown.
func TestStepDoesNotAllocate(t *testing.T) {
	c := newCluster(t, 4, Config{Pages: 1 << 20, Window: 5, ReadAhead: 8})
	run := func() {
		for part := range c.cores {
			c.now += 10
			c.access(part, 3, true)
			c.access((part+1)%4, 3, false)
			c.access((part+2)%4, 3, false)
			c.step(part, Event{Kind: EventPin, Page: 3, Token: 9})
			c.settle()
			c.now += 10
			c.step(part, Event{Kind: EventUnpin, Page: 3, Token: 9})
			for i := range c.cores {
				c.step(i, Event{Kind: EventTick})
			}
			c.settle()
		}
	}
	for range 10 {
		run()
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations in a round of faults, pins and ticks", n)
	}
}

// BenchmarkRemoteWrite is a write fault at a part that is not the directory, on a page that another part has modified: seven Steps, of
// them three at the requester.
func BenchmarkRemoteWrite(b *testing.B) {
	c := newCluster(b, 3, Config{Pages: 1 << 18})
	b.ReportAllocs()
	for i := range b.N {
		c.access(1+i%2, 3, true)
	}
}

// BenchmarkLocalTouch is a first touch of a page whose directory is the part itself: one Step.
func BenchmarkLocalTouch(b *testing.B) {
	c := newCluster(b, 1, Config{Pages: 1 << 24})
	b.ReportAllocs()
	for i := range b.N {
		c.access(0, ident.PageNo(i&(1<<24-1)), true)
	}
}

func TestUntouchedMemoryIsFree(t *testing.T) {
	c := newCluster(t, 2, Config{Pages: 64 * uint64(ident.GiB) >> ident.PageShift})
	for _, core := range c.cores {
		for _, chunk := range core.pages.chunks {
			if chunk != nil {
				t.Fatal("a page table was allocated")
			}
		}
		for _, chunk := range core.dir.chunks {
			if chunk != nil {
				t.Fatal("a directory was allocated")
			}
		}
	}
}

// TestSequentialReadsAreAhead: a scan asks for more and more pages ahead, and what it asked for is there when it comes.
func TestSequentialReadsAreAhead(t *testing.T) {
	c := newCluster(t, 2, Config{Pages: 4096, ReadAhead: 32})
	for page := range ident.PageNo(512) {
		c.access(0, page, true)
	}
	before := c.cores[1].Counters()
	faults := 0
	for page := range ident.PageNo(512) {
		if c.cores[1].Page(page) == Invalid {
			faults++
			c.access(1, page, false)
		}
	}
	after := c.cores[1].Counters()
	if faults > 512/32+8 {
		t.Errorf("%d faults in a scan of 512 pages", faults)
	}
	if n := after.Prefetched - before.Prefetched; n < 480 {
		t.Errorf("%d pages prefetched of 512", n)
	}
	for _, core := range c.cores {
		if err := core.Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestReadAheadTakesNoWriteAccess: a scan of writes over another part's pages gets no page that it did not ask for itself.
func TestReadAheadTakesNoWriteAccess(t *testing.T) {
	c := newCluster(t, 2, Config{Pages: 4096, ReadAhead: 32})
	for page := range ident.PageNo(64) {
		c.step(0, Event{Kind: EventFault, Page: page * 2, Write: true}) // not sequential
		c.settle()
	}
	for page := ident.PageNo(0); page < 8; page += 1 {
		c.access(1, page, true)
	}
	for page := ident.PageNo(8); page < 64; page += 2 {
		if s := c.cores[0].Page(page); s != Modified {
			t.Errorf("page %d became %v at its writer", page, s)
		}
	}
}

// TestSuspect: who does not answer within the deadline is named: first the directory, and once it has answered, the holders.
func TestSuspect(t *testing.T) {
	c := newCluster(t, 3, Config{Pages: 512, Deadline: 1000, Retry: 100, RetryMax: 400})
	c.access(1, 3, true)
	c.access(2, 3, false) // holders: 1 and 2, directory 0
	c.step(1, Event{Kind: EventFault, Page: 3, Write: true})
	for len(c.queue) > 0 { // part 2 is silent
		ev := c.queue[0]
		c.queue = c.queue[1:]
		if ev.Msg.To != 2 {
			c.step(int(ev.Msg.To), ev)
		}
	}
	var suspects ident.PartSet
	for c.now < 2500 {
		at, ok := c.cores[1].NextDeadline()
		if !ok {
			t.Fatal("no deadline")
		}
		c.now = max(at, c.now+1)
		c.step(1, Event{Kind: EventTick})
		for _, e := range c.cores[1].Effects() {
			if e.Kind == EffectSuspect {
				suspects = suspects.Set(e.To)
			}
		}
	}
	if suspects != ident.PartSet(0).Set(2) {
		t.Errorf("suspects %b", suspects)
	}
}

// TestHostileMessages: whatever a peer sends, the core survives it and its invariants hold.
func TestHostileMessages(t *testing.T) {
	c := newCluster(t, 3, Config{Pages: 1024})
	c.access(1, 3, true)
	c.access(2, 600, true)
	serials := []uint64{0, 1, serialBase(1), serialBase(1) + 1, serialBase(1) + 1000, serialBase(2), ^uint64(0)}
	for kind := wire.KindGetShared; kind <= wire.KindShardReady; kind++ {
		for _, serial := range serials {
			for _, page := range []ident.PageNo{0, 3, 600, 1023, 1024, wire.MaxPageNo} {
				for _, from := range []ident.Part{0, 1, 2, 3, 63} {
					for _, to := range []ident.Part{0, 1, 2} {
						m := wire.PageMsg{Kind: kind, From: from, To: to, Requester: (from + 1) % 64, Epoch: 1, Page: page, Serial: serial}
						c.cores[0].Step(0, Event{Kind: EventMessage, Msg: m})
						m.Requester = from
						c.cores[0].Step(0, Event{Kind: EventMessage, Msg: m})
					}
				}
			}
		}
	}
	if err := c.cores[0].Check(); err != nil {
		t.Error(err)
	}
	if c.cores[0].Counters().RefusedInvalid == 0 {
		t.Error("nothing was refused")
	}
}
