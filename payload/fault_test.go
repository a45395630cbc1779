package payload

import (
	"strings"
	"testing"
)

func TestParseFault(t *testing.T) {
	good := []uint32{faultHeader, 2, 0, 0, 3, 10, 20, 30, faultHeader, 6, 1, 3, 1, 40, faultEnd}
	series, complete, err := ParseFault(good)
	if err != nil || !complete || len(series) != 2 || series[0].Name != "read" || series[1].Sharers != 3 || series[1].Nanos[0] != 40 || len(series[0].Nanos) != 3 {
		t.Fatalf("got %+v, %t, %v", series, complete, err)
	}
	for cut := range good {
		if _, complete, err := ParseFault(good[:cut]); err != nil || complete {
			t.Errorf("the first %d records: complete %t, %v", cut, complete, err)
		}
	}
	for name, records := range map[string][]uint32{
		"no header":        {7, 1, 2, 3, 4, 5},
		"unknown series":   {faultHeader, 9, 0, 0, 0},
		"too many samples": {faultHeader, 1, 0, 0, 1 << 31},
		"behind the end":   {faultEnd, 1},
	} {
		if _, _, err := ParseFault(records); err == nil || !strings.Contains(err.Error(), "fault output") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
