package payload

import "fmt"

// The kinds of series that the fault payload measures, by the number in their header.
var faultSeries = map[uint32]string{1: "local", 2: "read", 3: "read-seq", 4: "write", 5: "write-seq", 6: "shared"}

const (
	faultHeader = 0x31544c46 // "FLT1"
	faultEnd    = 0x45544c46 // "FLTE"
	maxSamples  = 8192
)

// FaultSeries is what one vCPU measured in one series of the fault payload.
//
// In the output log a series is a header of five records, then its samples:
//
//	0x31544c46  "FLT1"
//	series      1 local, 2 read, 3 read-seq, 4 write, 5 write-seq, 6 shared
//	measurer    0 to MEASURERS-1
//	sharers     how many vCPUs had read each page before (series shared), else 0
//	n           number of samples
//	n samples   nanoseconds from before the touch to after it, in the order of the touches; 2^32-1 stands for that and all longer ones
//
// and the record 0x45544c46, "FLTE", follows the last series of all.
type FaultSeries struct {
	Name     string // local, read, read-seq, write, write-seq or shared
	Measurer int
	Sharers  int
	Nanos    []uint32
}

// ParseFault reads the output of the fault payload. complete tells whether the end mark was there. It takes any input.
func ParseFault(records []uint32) (series []FaultSeries, complete bool, err error) {
	for at := 0; at < len(records); {
		if records[at] == faultEnd {
			if at != len(records)-1 {
				return series, true, fmt.Errorf("fault output: %d records behind the end mark", len(records)-1-at)
			}
			return series, true, nil
		}
		rest := records[at:]
		if len(rest) < 5 {
			return series, false, nil // not all has been released yet
		}
		if rest[0] != faultHeader {
			return series, false, fmt.Errorf("fault output: record %d is 0x%x, want a header 0x%x", at, rest[0], uint32(faultHeader))
		}
		name, ok := faultSeries[rest[1]]
		n := rest[4]
		if !ok || n > maxSamples || rest[2] > 0xffff || rest[3] > 0xffff {
			return series, false, fmt.Errorf("fault output: header at record %d has series %d, measurer %d, sharers %d, %d samples", at, rest[1], rest[2], rest[3], n)
		}
		if uint64(len(rest)) < 5+uint64(n) {
			return series, false, nil
		}
		series = append(series, FaultSeries{Name: name, Measurer: int(rest[2]), Sharers: int(rest[3]), Nanos: rest[5 : 5+n]})
		at += 5 + int(n)
	}
	return series, false, nil
}
