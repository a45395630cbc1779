package mem

import "github.com/cellvisor/cellvisor/ident"

// Core is the page protocol of one part. It belongs to one goroutine.
type Core struct{}

// New returns a core that waits for its first EventMembers. It panics if cfg makes no sense.
func New(cfg Config) *Core { panic("in work") }

// Step takes one event in at time now, which never goes back, and leaves its effects in Effects.
func (c *Core) Step(now ident.Micros, ev Event) {}

// Effects returns what the last Step asks for. It is valid until the next Step.
func (c *Core) Effects() []Effect { return nil }

// NextDeadline returns when the core wants an EventTick, if at all.
func (c *Core) NextDeadline() (ident.Micros, bool) { return 0, false }

// Rebuilding tells whether some part's directory shard is not known to serve yet after a change of epoch.
func (c *Core) Rebuilding() bool { return false }

// Page returns the state of a page at this part.
func (c *Core) Page(page ident.PageNo) State { return Invalid }

// Directory returns the part that is the directory of page in the current epoch.
func (c *Core) Directory(page ident.PageNo) ident.Part { return 0 }

// Holder returns what this part, being the page's directory, knows of it; false if it is not.
func (c *Core) Holder(page ident.PageNo) (HolderInfo, bool) { return HolderInfo{}, false }

// Held counts the pages that this part holds, by state.
func (c *Core) Held() (shared, modified uint64) { return 0, 0 }

// Counters returns the counters.
func (c *Core) Counters() Counters { return Counters{} }

// Check returns an error that describes the first broken invariant of this core, if any. It visits every page.
func (c *Core) Check() error { return nil }
