package mem

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Config is what a core is told once.
type Config struct {
	Self  ident.Part
	Pages uint64 // of the VM's memory; page numbers are below it

	// Window is how long a page that was just installed is kept before it is given away (Mirage's window). Longer: fewer useless exchanges
	// between two writers; shorter: less wait for the other. 0 gives it away at once, even in the Step that maps it: two writers can then
	// starve each other for ever, so production sets it, to DefaultWindow unless told otherwise.
	Window ident.Micros
	// Stint, if not 0, divides time into spans of that length, which belong to the parts in turn: a page that a part is granted in its own it
	// keeps until that ends. It is for processors of one guest that need several pages at once which others need too, where a page takes
	// longer to come than Window: without it each keeps the one page that the other waits for. Parts are in step as far as their clocks are.
	Stint ident.Micros
	// Retry is when an unanswered message is sent again for the first time; the wait doubles up to RetryMax. 0 means the default.
	Retry, RetryMax ident.Micros
	// Deadline is the age from which a transaction raises Suspect, again after every further Deadline. 0 means the default.
	Deadline ident.Micros
	// ReadAhead is the largest number of pages requested ahead of a sequential fault; 0 switches read-ahead off.
	ReadAhead int
	// Company is how many pages that were given up are asked for again at once when a vCPU waits for a page; 0 switches that off. It is for Stint.
	Company int
	// RegionPages is the number of pages in a region, a power of two. All parts of a VM must agree. 0 means RegionPages, the constant, which
	// is also the most; worlds with few pages take less, so as to have many regions.
	RegionPages uint

	// Observe fills Traffic in.
	Observe bool
	// Rehome lets a region's directory go to another part, see EventRehome. Where a part of the VM does not have it, epochs with that one are Older.
	Rehome bool

	// Image, if not empty, is the one part whose memfd holds all of the VM's memory when the first epoch starts: the VM goes back to a
	// checkpoint there, or was on that one server before. A page that nobody was granted is then that part's, not Zero, and lost with it.
	// All parts are told the same.
	Image ident.PartSet

	// Canary plants a known bug, for proving that the simulator finds it. Empty in production. See Canaries.
	Canary string
}

// Defaults of Config.
const (
	DefaultWindow    = 200 * ident.Micros(1)
	DefaultRetry     = 20 * ident.Millisecond
	DefaultRetryMax  = 320 * ident.Millisecond
	DefaultDeadline  = 500 * ident.Millisecond
	DefaultReadAhead = 32
)

// EventKind says what happened.
type EventKind uint8

// The events.
const (
	// EventTick: the time of NextDeadline has passed. A tick too early or too many does no harm.
	EventTick EventKind = iota
	// EventFault: a vCPU of this part stopped at Page for access (Write or read). Repeats are harmless.
	EventFault
	// EventPin: a device wants Page with the access, held until EventUnpin with the same Page and Token. Tokens are the caller's, unique
	// among live pins. Answer: EffectPinned, perhaps in the same Step. Whoever pins several pages pins them in rising order of page
	// number, or two parts can wait for each other; and never asks for write access to a page that it holds pinned for reading.
	EventPin
	// EventUnpin ends a pin, or withdraws one that was not answered yet.
	EventUnpin
	// EventMessage: Msg arrived from a peer. Its contents, if any (Flags has wire.FlagContents), stay with the shell, which executes
	// EffectStore with them. The body of a report or of a directory (wire.KindReport, wire.KindHome) comes as Body, of Msg.BodyBytes bytes.
	EventMessage
	// EventMembers: the VM has an epoch's set of live parts. The first one starts the protocol; each later one has a higher epoch and a
	// subset of the parts: those missing are gone for good. Fresh is set if Epoch is the VM's first, when no page was ever granted. Older is set if a
	// member may not know what Config.Rehome brings: then this part gives no directory away in the epoch, though it takes any.
	EventMembers
	// EventYield: no vCPU of this part runs. It keeps no page for its stint's sake.
	EventYield
	// EventPass: a vCPU of this part interrupted one elsewhere, and may well wait for what that does. It keeps no page for its stint's sake, nor what it
	// is granted in the rest of it.
	EventPass
	// EventTurn: a vCPU of this part was interrupted from elsewhere: the rest of the stint is this part's, too.
	EventTurn
	// EventRehome: the directory of Page's region should be at part To, if it is at this part now. It goes when the region is at rest, and stays if it is
	// not for a while, or has pages that no part holds or whose contents are lost. Only with Config.Rehome, and not in an epoch that is Older.
	EventRehome
)

// Event is one input of the core. Fields that its kind does not mention are zero.
type Event struct {
	Kind    EventKind
	Write   bool
	Fresh   bool
	Older   bool
	By      uint16 // of a fault: the caller's name for who faulted, for Traffic; 0 is nobody
	Around  uint16 // of a fault for reading: the pages of the aligned block of so many, a power of two, are asked for as well
	To      ident.Part
	Page    ident.PageNo
	Token   uint64
	Epoch   ident.Epoch
	Members ident.PartSet
	Msg     wire.PageMsg
	Body    []byte
}

// EffectKind says what the shell has to do.
type EffectKind uint8

// The effects. The shell executes them in order, to completion, before it steps the core again: a page's contents are read only after the
// Protect or Revoke that precedes the Send.
const (
	// EffectSend: send Msg to part To. If Msg.Flags has wire.FlagContents, the contents of page Msg.Page, as they are in the memfd now, go
	// along; if Msg.Kind is wire.KindReport or wire.KindHome, Body goes along. The shell fills in Msg.VM. Messages to one peer should leave in this order, though
	// nothing but speed depends on it.
	EffectSend EffectKind = iota + 1
	// EffectStore: write the contents that came with the message being stepped to Page in the memfd. The page is not mapped in the guest.
	EffectStore
	// EffectZero: make the contents of Page in the memfd zero. The page is not mapped in the guest.
	EffectZero
	// EffectMap: let the guest access Page, for writing if Writable, else write-protected, and wake the vCPUs that wait for it. Upgrade tells
	// that the page is mapped for reading already (so that only its write protection goes). A page that turns out to be mapped (EEXIST) gets
	// the access all the same.
	EffectMap
	// EffectProtect: write-protect Page in the guest mapping.
	EffectProtect
	// EffectRevoke: take Page out of the guest mapping. The contents stay in the memfd.
	EffectRevoke
	// EffectPinned: the pin Token on Page holds.
	EffectPinned
	// EffectSuspect: part To has not answered for a deadline. A hint, it decides nothing.
	EffectSuspect
	// EffectLostPage: the latest contents of Page died with a part; a fault or pin (Token, unless 0) for it can never be answered.
	EffectLostPage
)

// Effect is one output of the core. Fields that its kind does not mention are zero.
type Effect struct {
	Kind     EffectKind
	Writable bool
	Upgrade  bool
	To       ident.Part
	Page     ident.PageNo
	Token    uint64
	Msg      wire.PageMsg
	Body     []byte // of a report; valid until the next Step
}

// TrafficKind says what became of a page.
type TrafficKind uint8

// The kinds of Traffic.
const (
	CameRead  TrafficKind = iota + 1 // its contents came from Peer, for reading
	CameWrite                        // its contents came from Peer, for writing
	Upgraded                         // it was here for reading; Peer, if any but this part, gave up its copy
	Zeroed                           // touched first, Peer is its directory
	Left                             // it went to Peer
	Used                             // one of a block, which was not mapped to see whether it is used, was
	Unused                           // one that was not mapped left without having been used
	Asked                            // a request came to this part, At, a directory: from Peer, for a page of the region from Page on that Holder has, or Peer itself
)

// Traffic is a page that came or went, for whoever chooses where work and pages go.
type Traffic struct {
	Kind   TrafficKind
	Peer   ident.Part
	By     uint16 // who waited for it; 0: nobody that the caller has named
	At     ident.Part
	Holder ident.Part
	Moves  uint32 // that the region's directory has made in this epoch
	Page   ident.PageNo
	Waited ident.Micros
}

// State is the state of a page at one part.
type State uint8

// The states. A page that is Zero or Invalid cannot be accessed by the guest at this part; Zero is known to the directory only.
const (
	Invalid  State = iota // not here
	Shared                // here for reading; others may read it too
	Modified              // here for reading and writing, and nowhere else
	Zero                  // directory: never granted to anybody, all zeros
	Retained              // directory: nobody holds it, its latest contents are a copy that Owner retained
	Lost                  // directory: its latest contents died with a part
)

var stateNames = [...]string{"invalid", "shared", "modified", "zero", "retained", "lost"}

// String returns the state in lower case.
func (s State) String() string { return stateNames[s] }

// HolderInfo is what a page's directory knows of it.
type HolderInfo struct {
	State   State
	Holders ident.PartSet
	Serial  uint64
	Busy    bool // a transaction is under way
}

// Counters count since the core's start.
type Counters struct {
	Faults, SpuriousFaults            uint64 // faults stepped; those whose access was there already
	RemoteReads, RemoteWrites         uint64 // installs with contents from another part, by access
	Upgrades                          uint64 // read access turned into write access
	ZeroFills                         uint64 // first touches
	Prefetched, PrefetchRefused       uint64 // installs due to read-ahead; read-ahead requests refused
	Gathered                          uint64 // asked for because others were, see Config.Company
	ContentsSent                      uint64 // copies of pages sent to others
	Invalidated                       uint64 // pages given up
	Deferred                          uint64 // messages held back for a window or a pin
	Transactions                      uint64 // begun by this directory shard
	Retransmits                       uint64 // messages sent again by a timer
	RefusedEpoch                      uint64 // messages of another epoch
	RefusedStale                      uint64 // of a transaction that is over: repeated or late
	RefusedInvalid                    uint64 // that make no sense: a broken or hostile peer
	RefusedRebuilding                 uint64 // requests while this directory shard was being rebuilt
	LostPages                         uint64 // found lost by this directory shard
	ReportBatchesIn, ReportBatchesOut uint64 // batches of reports taken, sent
	HomesGiven, HomesTaken            uint64 // directories of regions that went to another part, came from one
	Passed                            uint64 // messages for a directory that has gone, passed on
}
