package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// The page plane: what the parts of one virtual machine say to each other about pages. A message is a header of PageHeaderBytes, little
// endian, and, when BodyBytes says so, a body: the contents of one page (FlagContents) or records (KindReport, KindHome).
//
//	offset bytes  field                 offset bytes  field
//	     0     1  version                   24     8  page number
//	     1     1  kind                      32     8  serial
//	     2     2  flags                     40     8  acks (a set of parts)
//	     4     1  from                      48     8  request ID
//	     5     1  to                        56     4  body bytes
//	     6     1  requester                 60     4  zero
//	     7     1  zero
//	     8     8  VM
//	    16     8  epoch

// Limits of the page plane.
const (
	PageVersion     = 1
	PageHeaderBytes = 64
	PageBodyBytes   = ident.PageSize // largest body
	MaxPageNo       = ident.PageNo(1)<<40 - 1

	// PageMsgBytes is the size of the largest message.
	PageMsgBytes = PageHeaderBytes + PageBodyBytes
)

// PageKind says what a page message is.
type PageKind uint8

// The kinds, with sender and receiver. R is the requester, D the directory of the page, H a holder of it.
const (
	KindGetShared   PageKind = iota + 1 // R -> D: let me read
	KindGetModified                     // R -> D: let me write
	KindFwdShared                       // D -> H: supply the requester with a copy; you may go on reading
	KindFwdModified                     // D -> H: give the page up, supply the requester; Acks names who will acknowledge to it
	KindInval                           // D -> H: give the page up, acknowledge to the requester
	KindData                            // H -> R: the contents; Acks as in Fwd
	KindGrant                           // D -> R: access without contents: R has them (or FlagZero: they are zero)
	KindAck                             // H -> R: I gave the page up
	KindDone                            // R -> D: installed, the transaction is over
	KindNoPrefetch                      // D -> R: not now; a demand request would be served
	KindLost                            // D -> R: the latest contents died with a part
	KindReport                          // part -> D, after a change of epoch: a batch of what I hold; Serial is the batch's number
	KindReportAck                       // D -> part: batch Serial was taken
	KindShardReady                      // D -> all: every survivor reported, I serve requests
	KindHome                            // D -> part: be the directory of the page's region, place number ReqID; the body says what I know, Serial is the highest
	KindHomeAck                         // part -> D: I am
	KindHomed                           // part -> all: I am, place number ReqID
	kindEnd
)

var pageKindNames = [...]string{"?", "GetShared", "GetModified", "FwdShared", "FwdModified", "Inval", "Data", "Grant", "Ack", "Done",
	"NoPrefetch", "Lost", "Report", "ReportAck", "ShardReady", "Home", "HomeAck", "Homed"}

// String returns the kind's name as in the constants.
func (k PageKind) String() string {
	if int(k) < len(pageKindNames) {
		return pageKindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// PageFlags modify a page message.
type PageFlags uint16

// The flags.
const (
	FlagContents PageFlags = 1 << iota // the body holds the contents of the page
	FlagWrite                          // Data, Grant: the access granted is Modified, otherwise Shared
	FlagZero                           // Grant: the page was never written; it is all zeros
	FlagPrefetch                       // GetShared, GetModified: read-ahead, may be refused
	FlagRetained                       // Fwd, Grant: use the retained copy that the rebuilt directory chose
	FlagLast                           // Report: the sender's last batch
	flagEnd
)

// PageMsg is one message of the page plane.
type PageMsg struct {
	Kind      PageKind
	Flags     PageFlags
	From, To  ident.Part
	Requester ident.Part    // of the transaction
	VM        ident.VMID    // set and checked by the shell
	Epoch     ident.Epoch   // the sender's
	Page      ident.PageNo  // 0 in ReportAck and ShardReady
	Serial    uint64        // of the page's transaction, given by its directory; rising
	Acks      ident.PartSet // parts that acknowledge to the requester
	ReqID     uint64        // the requester's number of the request
	BodyBytes uint32        // of the body that follows
}

// String prints the message for people.
func (m PageMsg) String() string {
	return fmt.Sprintf("%s %v>%v page %d serial %d/%d R=%v req %d acks %b flags %#x epoch %d body %d", m.Kind, m.From, m.To, m.Page,
		m.Serial>>SerialCountBits, m.Serial&(1<<SerialCountBits-1), m.Requester, m.ReqID, uint64(m.Acks), uint16(m.Flags), m.Epoch, m.BodyBytes)
}

// SerialCountBits is the width of the count in a serial; the bits above are the epoch in which the directory gave it.
const SerialCountBits = 40

// Errors of the page codec.
var (
	ErrPageShort   = errors.New("page message: too short")
	ErrPageVersion = errors.New("page message: unknown version")
	ErrPageInvalid = errors.New("page message: field out of range")
)

// PutPageHeader encodes m's header into b, which has at least PageHeaderBytes. It does not allocate.
func PutPageHeader(b []byte, m *PageMsg) {
	_ = b[PageHeaderBytes-1]
	b[0], b[1] = PageVersion, byte(m.Kind)
	binary.LittleEndian.PutUint16(b[2:], uint16(m.Flags))
	b[4], b[5], b[6], b[7] = byte(m.From), byte(m.To), byte(m.Requester), 0
	binary.LittleEndian.PutUint64(b[8:], uint64(m.VM))
	binary.LittleEndian.PutUint64(b[16:], uint64(m.Epoch))
	binary.LittleEndian.PutUint64(b[24:], uint64(m.Page))
	binary.LittleEndian.PutUint64(b[32:], m.Serial)
	binary.LittleEndian.PutUint64(b[40:], uint64(m.Acks))
	binary.LittleEndian.PutUint64(b[48:], m.ReqID)
	binary.LittleEndian.PutUint64(b[56:], uint64(m.BodyBytes))
}

// PageHeader decodes and validates a header; b may be longer. After it the caller reads exactly m.BodyBytes bytes of body, at most
// PageBodyBytes. It does not allocate unless it fails.
func PageHeader(b []byte, m *PageMsg) error {
	if len(b) < PageHeaderBytes {
		return ErrPageShort
	}
	if b[0] != PageVersion {
		return ErrPageVersion
	}
	*m = PageMsg{
		Kind:      PageKind(b[1]),
		Flags:     PageFlags(binary.LittleEndian.Uint16(b[2:])),
		From:      ident.Part(b[4]),
		To:        ident.Part(b[5]),
		Requester: ident.Part(b[6]),
		VM:        ident.VMID(binary.LittleEndian.Uint64(b[8:])),
		Epoch:     ident.Epoch(binary.LittleEndian.Uint64(b[16:])),
		Page:      ident.PageNo(binary.LittleEndian.Uint64(b[24:])),
		Serial:    binary.LittleEndian.Uint64(b[32:]),
		Acks:      ident.PartSet(binary.LittleEndian.Uint64(b[40:])),
		ReqID:     binary.LittleEndian.Uint64(b[48:]),
		BodyBytes: binary.LittleEndian.Uint32(b[56:]),
	}
	if b[7] != 0 || binary.LittleEndian.Uint32(b[60:]) != 0 {
		return ErrPageInvalid
	}
	return m.validate()
}

// pageFlagsOf lists the flags that each kind may carry.
var pageFlagsOf = [kindEnd]PageFlags{
	KindGetShared:   FlagPrefetch,
	KindGetModified: FlagPrefetch,
	KindFwdShared:   FlagRetained,
	KindFwdModified: FlagRetained,
	KindData:        FlagContents | FlagWrite,
	KindGrant:       FlagWrite | FlagZero | FlagRetained,
	KindReport:      FlagLast,
}

func (m *PageMsg) validate() error {
	switch {
	case m.Kind == 0 || m.Kind >= kindEnd,
		m.Flags&^pageFlagsOf[m.Kind] != 0,
		m.From >= ident.MaxParts || m.To >= ident.MaxParts || m.Requester >= ident.MaxParts,
		m.Page > MaxPageNo,
		m.BodyBytes > PageBodyBytes:
		return ErrPageInvalid
	}
	switch m.Kind {
	case KindData:
		if m.Flags&FlagContents == 0 || m.BodyBytes != PageBodyBytes {
			return ErrPageInvalid
		}
	case KindReport, KindHome:
		if m.BodyBytes%HoldingBytes != 0 {
			return ErrPageInvalid
		}
	default:
		if m.BodyBytes != 0 {
			return ErrPageInvalid
		}
	}
	return nil
}

// HoldingKind says what a record of a report states about its pages.
type HoldingKind uint8

// The records of a report, see package mem for what the rebuilt directory makes of them.
const (
	HoldingShared   HoldingKind = iota + 1 // I hold the pages for reading
	HoldingModified                        // I hold them for writing
	HoldingRetained                        // my contents are those handed to Part under Serial; Part = me: received, not installed
	HoldingGranted                         // I was their directory in epoch Aux: they have been granted, or are lost
	HoldingGranting                        // as Granted, but the first grant, to Part, was under way
	HoldingKept                            // I was their directory in epoch Aux: their latest contents are the copies retained under Serial, unless Part died
	HoldingEpoch                           // in epoch Serial the members were the set in Page; Part = 1: I served my directory shard
	HoldingHome                            // the directory of the page's region went to Part in epoch Aux, place number Serial
	holdingEnd
)

// HoldingBytes is the size of an encoded Holding; HoldingsMax is how many fit in a body.
const (
	HoldingBytes = 32
	HoldingsMax  = PageBodyBytes / HoldingBytes
)

// Holding is one record of a report: a statement about Count pages from Page on.
type Holding struct {
	Kind   HoldingKind
	Part   ident.Part
	Count  uint32
	Page   uint64 // a page number, or in HoldingEpoch a set of parts
	Serial uint64
	Aux    uint64
}

// PutHolding encodes h into b, which has at least HoldingBytes.
func PutHolding(b []byte, h *Holding) {
	_ = b[HoldingBytes-1]
	b[0], b[1], b[2], b[3] = byte(h.Kind), byte(h.Part), 0, 0
	binary.LittleEndian.PutUint32(b[4:], h.Count)
	binary.LittleEndian.PutUint64(b[8:], h.Page)
	binary.LittleEndian.PutUint64(b[16:], h.Serial)
	binary.LittleEndian.PutUint64(b[24:], h.Aux)
}

// GetHolding decodes and validates the record at the head of b.
func GetHolding(b []byte, h *Holding) error {
	if len(b) < HoldingBytes {
		return ErrPageShort
	}
	*h = Holding{
		Kind:   HoldingKind(b[0]),
		Part:   ident.Part(b[1]),
		Count:  binary.LittleEndian.Uint32(b[4:]),
		Page:   binary.LittleEndian.Uint64(b[8:]),
		Serial: binary.LittleEndian.Uint64(b[16:]),
		Aux:    binary.LittleEndian.Uint64(b[24:]),
	}
	switch {
	case h.Kind == 0 || h.Kind >= holdingEnd || h.Part >= ident.MaxParts || b[2] != 0 || b[3] != 0:
		return ErrPageInvalid
	case h.Kind == HoldingEpoch:
		return nil
	case h.Count == 0 || h.Page > uint64(MaxPageNo) || h.Page+uint64(h.Count) > uint64(MaxPageNo)+1:
		return ErrPageInvalid
	}
	return nil
}
