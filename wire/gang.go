package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// What servers say to each other about slices, as the body of an EnvelopeGang: one byte of version, one of kind, then integers as varints.
// A body is either a GangSlice or a GangReport.

// GangVersion is the version of this encoding.
const GangVersion = 1

// GangEntryLimit bounds the entries of one list.
const GangEntryLimit = 4096

const (
	gangSlice  = 1
	gangReport = 2
	gangPlan   = 3 // a slice and those that follow it
)

// GangSlice is the conductor's word to one server: these gangs run, from Start on; all others of the domain wait. What was said for Start and later no
// longer holds.
type GangSlice struct {
	Number uint64       // rises with each slice of a conductor, over its restarts too
	Sent   ident.Micros // on the conductor's clock; the report echoes it
	Start  ident.Micros // on the receiver's clock; in the past or zero: at once
	Run    []ident.VMID // by rising number

	Next []GangTurn // slices that follow, by their begin; only for who has said that it follows plans
}

// GangTurn is a slice that follows another one.
type GangTurn struct {
	Number uint64       // rises
	Start  ident.Micros // on the receiver's clock
	Run    []ident.VMID // by rising number
}

// GangReport is a server's word to its conductor: which of its vCPUs have work.
type GangReport struct {
	Number   uint64       // of the last slice taken
	EchoSent ident.Micros // Sent of that slice, on the conductor's clock
	Received ident.Micros // when it came, on the sender's clock
	Sent     ident.Micros // on the sender's clock
	Busy     []GangBusy   // every gang of the domain that has a part there, by rising VM
	Started  []GangStart
	Plans    bool // the sender understands GangSlice.Next
}

// plansEntry among Busy says that the sender follows plans. There is no such VM: versions that know nothing of plans pass it over.
var plansEntry = GangBusy{VM: 0, VCPUs: 1}

// GangBusy counts the vCPUs of a part that are not idle.
type GangBusy struct {
	VM    ident.VMID
	VCPUs int
}

// GangStart says when a part's vCPUs were let go in a slice, the first and the last of them, on the sender's clock.
type GangStart struct {
	VM          ident.VMID
	Number      uint64
	First, Last ident.Micros
}

// AppendGangSlice appends the encoding of m.
func AppendGangSlice(b []byte, m *GangSlice) []byte {
	kind := byte(gangSlice)
	if len(m.Next) > 0 {
		kind = gangPlan
	}
	b = append(b, GangVersion, kind)
	b = binary.AppendUvarint(b, m.Number)
	b = appendMicros(b, m.Sent, m.Start)
	b = appendVMs(b, m.Run)
	if kind == gangSlice {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(m.Next)))
	for i := range m.Next {
		b = binary.AppendUvarint(b, m.Next[i].Number)
		b = appendMicros(b, m.Next[i].Start)
		b = appendVMs(b, m.Next[i].Run)
	}
	return b
}

func appendVMs(b []byte, vms []ident.VMID) []byte {
	b = binary.AppendUvarint(b, uint64(len(vms)))
	for _, vm := range vms {
		b = binary.AppendUvarint(b, uint64(vm))
	}
	return b
}

// AppendGangReport appends the encoding of m.
func AppendGangReport(b []byte, m *GangReport) []byte {
	b = append(b, GangVersion, gangReport)
	b = binary.AppendUvarint(b, m.Number)
	b = appendMicros(b, m.EchoSent, m.Received, m.Sent)
	busy := m.Busy
	if m.Plans {
		busy = append([]GangBusy{plansEntry}, busy...)
	}
	b = binary.AppendUvarint(b, uint64(len(busy)))
	for _, x := range busy {
		b = binary.AppendUvarint(b, uint64(x.VM))
		b = binary.AppendUvarint(b, uint64(x.VCPUs))
	}
	b = binary.AppendUvarint(b, uint64(len(m.Started)))
	for _, x := range m.Started {
		b = binary.AppendUvarint(b, uint64(x.VM))
		b = binary.AppendUvarint(b, x.Number)
		b = appendMicros(b, x.First, x.Last)
	}
	return b
}

func appendMicros(b []byte, times ...ident.Micros) []byte {
	for _, t := range times {
		b = binary.AppendVarint(b, int64(t))
	}
	return b
}

// DecodeGang decodes either message; the other result is nil.
func DecodeGang(b []byte) (*GangSlice, *GangReport, error) {
	if len(b) < 2 || b[0] != GangVersion {
		return nil, nil, fmt.Errorf("wire: message about slices of an unknown version: %w", ErrBadFrame)
	}
	d := varints{rest: b[2:]}
	switch b[1] {
	case gangSlice, gangPlan:
		m := d.gangSlice(b[1] == gangPlan)
		return m, nil, d.end("slice")
	case gangReport:
		m := d.gangReport()
		return nil, m, d.end("report")
	}
	return nil, nil, fmt.Errorf("wire: message about slices of unknown kind %d: %w", b[1], ErrBadFrame)
}

func (d *varints) gangSlice(plan bool) *GangSlice {
	m := &GangSlice{Number: d.unsigned(), Sent: d.micros(), Start: d.micros(), Run: d.vms()}
	if !plan {
		return m
	}
	last, at := m.Number, m.Start
	for range d.count(GangEntryLimit) {
		t := GangTurn{Number: d.unsigned(), Start: d.micros(), Run: d.vms()}
		d.bad = d.bad || t.Number <= last || t.Start < at
		last, at = t.Number, t.Start
		m.Next = append(m.Next, t)
	}
	d.bad = d.bad || len(m.Next) == 0
	return m
}

func (d *varints) vms() (vms []ident.VMID) {
	for range d.count(GangEntryLimit) {
		vms = append(vms, ident.VMID(d.unsigned()))
	}
	return vms
}

func (d *varints) gangReport() *GangReport {
	m := &GangReport{Number: d.unsigned(), EchoSent: d.micros(), Received: d.micros(), Sent: d.micros()}
	for range d.count(GangEntryLimit) {
		m.Busy = append(m.Busy, GangBusy{VM: ident.VMID(d.unsigned()), VCPUs: d.small()})
	}
	if len(m.Busy) > 0 && m.Busy[0] == plansEntry {
		m.Plans, m.Busy = true, m.Busy[1:]
	}
	if len(m.Busy) == 0 {
		m.Busy = nil
	}
	for range d.count(GangEntryLimit) {
		m.Started = append(m.Started, GangStart{VM: ident.VMID(d.unsigned()), Number: d.unsigned(), First: d.micros(), Last: d.micros()})
	}
	return m
}

// varints reads integers until one is malformed; what it returns from then on is zero.
type varints struct {
	rest []byte
	bad  bool
}

func (d *varints) take(n int) {
	if n <= 0 {
		d.rest, d.bad = nil, true
		return
	}
	d.rest = d.rest[n:]
}

func (d *varints) unsigned() uint64 {
	v, n := binary.Uvarint(d.rest)
	d.take(n)
	return v
}

func (d *varints) micros() ident.Micros {
	v, n := binary.Varint(d.rest)
	d.take(n)
	return ident.Micros(v)
}

// small reads an integer below 65536.
func (d *varints) small() int {
	v := d.unsigned()
	if v > 1<<16-1 {
		d.bad = true
		return 0
	}
	return int(v)
}

// count reads the length of a list; each entry has at least one byte.
func (d *varints) count(limit int) int {
	n := d.unsigned()
	if n > uint64(min(limit, len(d.rest))) {
		d.rest, d.bad = nil, true
		return 0
	}
	return int(n)
}

func (d *varints) end(what string) error {
	if d.bad || len(d.rest) != 0 {
		return fmt.Errorf("wire: malformed %s: %w", what, ErrBadFrame)
	}
	return nil
}
