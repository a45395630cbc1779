package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// LoadVersion is the version of the encoding of a LoadReport.
const LoadVersion = 1

// Limits of a LoadReport.
const (
	LoadServerLimit = 4096
	LoadPartLimit   = 1 << 16 // over all servers
)

// LoadReport is a server's word to its parent in the load tree, as the body of an EnvelopeLoad: what it knows of itself and of all below it. It is whole
// each time, so that one which is lost does no harm. One byte of version, then integers as varints.
type LoadReport struct {
	Number  uint64 // rises with each report of a sender, over its restarts too
	Servers []ServerLoad
}

// ServerLoad is which vCPUs of a server idle. Those of parts that are not listed all have work.
type ServerLoad struct {
	Server ident.ServerID
	Idle   []PartIdle // by rising VM
}

// PartIdle counts the vCPUs of a VM's part that idle, on average of late.
type PartIdle struct {
	VM    ident.VMID
	VCPUs int
}

// AppendLoadReport appends the encoding of m.
func AppendLoadReport(b []byte, m *LoadReport) []byte {
	b = append(b, LoadVersion)
	b = binary.AppendUvarint(b, m.Number)
	b = binary.AppendUvarint(b, uint64(len(m.Servers)))
	for i := range m.Servers {
		s := &m.Servers[i]
		b = binary.AppendUvarint(b, uint64(s.Server))
		b = binary.AppendUvarint(b, uint64(len(s.Idle)))
		for _, p := range s.Idle {
			b = binary.AppendUvarint(b, uint64(p.VM))
			b = binary.AppendUvarint(b, uint64(p.VCPUs))
		}
	}
	return b
}

// DecodeLoadReport decodes a report.
func DecodeLoadReport(b []byte) (*LoadReport, error) {
	if len(b) < 1 || b[0] != LoadVersion {
		return nil, fmt.Errorf("wire: load report of an unknown version: %w", ErrBadFrame)
	}
	d := varints{rest: b[1:]}
	m := &LoadReport{Number: d.unsigned()}
	left := LoadPartLimit
	for range d.count(LoadServerLimit) {
		s := ServerLoad{Server: ident.ServerID(d.unsigned())}
		n := d.count(left)
		left -= n
		for range n {
			s.Idle = append(s.Idle, PartIdle{VM: ident.VMID(d.unsigned()), VCPUs: d.small()})
		}
		m.Servers = append(m.Servers, s)
	}
	return m, d.end("load report")
}
