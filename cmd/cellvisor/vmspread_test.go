package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/api"
)

// TestSpreadPlan: as even as can be, with as few moves as can be.
func TestSpreadPlan(t *testing.T) {
	parts := func(vcpus ...[]uint32) (out []*api.Worker) {
		for i, ids := range vcpus {
			out = append(out, &api.Worker{Server: fmt.Sprintf("%c-1", 'a'+i), Cell: string(rune('a' + i)), Vcpus: ids})
		}
		return out
	}
	for _, c := range []struct {
		name  string
		parts []*api.Worker
		over  []string
		want  string
	}{
		{"even already", parts([]uint32{0, 1}, []uint32{2}), nil, ""},
		{"the larger share stays where it is", parts([]uint32{2}, []uint32{0, 1}), nil, ""},
		{"all on one", parts([]uint32{3, 1, 0, 2}, nil), nil, "2 a-1 b-1, 3 a-1 b-1"},
		{"over three", parts([]uint32{0, 1, 2, 3}, nil, []uint32{4}), nil, "2 a-1 b-1, 3 a-1 c-1"},
		{"off one", parts([]uint32{0}, []uint32{1}, []uint32{2}), []string{"a", "c-1"}, "1 b-1 a-1"},
		{"to one", parts([]uint32{0}, []uint32{1}, []uint32{2}), []string{"b"}, "0 a-1 b-1, 2 c-1 b-1"},
	} {
		chosen, err := chooseWorkers(c.parts, c.over)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range spreadPlan(c.parts, chosen) {
			got = append(got, fmt.Sprint(m.vcpu, " ", m.from, " ", m.to))
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
	}
	if _, err := chooseWorkers(parts(nil, nil), []string{"d"}); err == nil || !strings.Contains(err.Error(), "a-1, b-1") {
		t.Errorf("a server without a part: %v", err)
	}
}
