package locality

import (
	"testing"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestLocality(t *testing.T) { simtest.Seeds(t, "locality", 24) }
func TestCanaries(t *testing.T) { simtest.Canaries(t, "locality", 100) }

// Over the mix auto beats every fixed policy.
func TestAutoBeatsEveryFixedPolicyOverTheMix(t *testing.T) {
	totals := map[string]ident.Micros{}
	for seed := range uint64(3) {
		for _, name := range locality.Policies() {
			p, _ := locality.Parse(name)
			r, err := Mix(seed, 6, 10).Play(p)
			if err != nil {
				t.Fatal(err)
			}
			totals[name] += r.Total
			t.Logf("%-10s private %6d fill %6d shared %6d pipe %6d lock %6d migratory %6d hot %6d total %7d us, %6d remote, %d moves", name, r.Times[Private], r.Times[Fill],
				r.Times[Shared], r.Times[Pipe], r.Times[Lock], r.Times[Migratory], r.Times[Hot], r.Total, r.Remote, r.Moves)
		}
	}
	for _, p := range Fixed {
		if auto := totals[locality.Auto.String()]; auto >= totals[p.String()] {
			t.Errorf("auto takes %d us, %v %d", auto, p, totals[p.String()])
		}
	}
}
