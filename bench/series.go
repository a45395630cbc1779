package bench

import (
	"errors"
	"fmt"
)

// The output records of the payload `fault`: see payload/src/fault.c.
const (
	seriesMark = 0x31544c46 // "FLT1"
	endMark    = 0x45544c46 // "FLTE"
	maxSamples = 1 << 16
)

// Kinds of series, by their number in the records.
const (
	seriesLocal = 1 + iota
	seriesRead
	seriesReadSeq
	seriesWrite
	seriesWriteSeq
	seriesShared
)

// series is what one measuring vCPU found in one kind of series.
type series struct {
	kind, measurer, sharers uint32
	ns                      []uint32
}

// decodeSeries reads the output of a run that came to its end.
func decodeSeries(records []uint32) ([]series, error) {
	var out []series
	for len(records) > 0 {
		if records[0] == endMark && len(records) == 1 {
			return out, nil
		}
		const header = 5
		if records[0] != seriesMark || len(records) < header {
			return nil, fmt.Errorf("after %d series, a record %#x is no beginning of one", len(out), records[0])
		}
		s := series{kind: records[1], measurer: records[2], sharers: records[3]}
		n := records[4]
		if n > maxSamples || int(n) > len(records)-header {
			return nil, fmt.Errorf("series %d announces %d samples, %d records follow", len(out), n, len(records)-header)
		}
		s.ns = records[header : header+n]
		records = records[header+n:]
		out = append(out, s)
	}
	return nil, errors.New("the output ends before its end mark")
}

// pool joins the samples of all series of a kind.
func pool(all []series, kind uint32) []uint32 {
	var out []uint32
	for _, s := range all {
		if s.kind == kind {
			out = append(out, s.ns...)
		}
	}
	return out
}
