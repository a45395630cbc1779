package locality

import (
	"encoding/binary"
	"errors"

	"github.com/cellvisor/cellvisor/ident"
)

// A report is what a part tells home, without an answer:
//
//	version 1 byte, residents 2, of each its vCPU 2; then, to the end: vCPU 2, part 1, faults 2, micros waited 4
//
// One that is lost is made up for by the next ones.
const (
	reportVersion = 1
	entryBytes    = 2 + 1 + 2 + 4
	maxEntries    = 1024
)

// ErrReport is returned for bytes that are no report.
var ErrReport = errors.New("malformed report of waits for pages")

// Waits is one entry: what a vCPU waited for a part's pages.
type Waits struct {
	VCPU   ident.VCPU
	Peer   ident.Part
	Faults uint16
	Waited ident.Micros
}

// Report is what one part says.
type Report struct {
	From      ident.Part
	Residents []ident.VCPU
	Waits     []Waits
}

// AppendReport appends what the vCPUs that are here waited since the last report; nothing if nobody did.
func (o *Observer) AppendReport(b []byte, residents []ident.VCPU) []byte {
	if !o.busy {
		return b
	}
	o.busy = false
	b = append(b, reportVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(residents)))
	for _, id := range residents {
		b = binary.LittleEndian.AppendUint16(b, uint16(id))
	}
	entries := 0
	for v, rows := range o.rows {
		for peer := range rows {
			w := &rows[peer]
			if w.faults == 0 {
				continue
			}
			if entries++; entries <= maxEntries {
				b = binary.LittleEndian.AppendUint16(b, uint16(v))
				b = append(b, byte(peer))
				b = binary.LittleEndian.AppendUint16(b, uint16(min(w.faults, 1<<16-1)))
				b = binary.LittleEndian.AppendUint32(b, uint32(min(w.waited, 1<<32-1)))
			}
			*w = row{}
		}
	}
	return b
}

// ParseReport reads what part from has said.
func ParseReport(from ident.Part, b []byte) (r Report, err error) {
	if len(b) < 3 || b[0] != reportVersion {
		return r, ErrReport
	}
	n := int(binary.LittleEndian.Uint16(b[1:]))
	b = b[3:]
	if len(b) < 2*n || (len(b)-2*n)%entryBytes != 0 || (len(b)-2*n)/entryBytes > maxEntries {
		return r, ErrReport
	}
	r.From = from
	for ; n > 0; n, b = n-1, b[2:] {
		r.Residents = append(r.Residents, ident.VCPU(binary.LittleEndian.Uint16(b)))
	}
	for ; len(b) > 0; b = b[entryBytes:] {
		w := Waits{VCPU: ident.VCPU(binary.LittleEndian.Uint16(b)), Peer: ident.Part(b[2]), Faults: binary.LittleEndian.Uint16(b[3:]),
			Waited: ident.Micros(binary.LittleEndian.Uint32(b[5:]))}
		if w.Peer >= ident.MaxParts {
			return Report{}, ErrReport
		}
		r.Waits = append(r.Waits, w)
	}
	return r, nil
}
