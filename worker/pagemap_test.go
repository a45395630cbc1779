package worker

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// askMap asks a part until it holds something, and returns how many pages it holds.
func (p *part) askMap(ask wire.WorkerMapAsk) (shared, modified int) {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for token := uint64(1); shared+modified == 0; token++ {
		ask.Token = token
		if err := wire.WriteJSON(p.conn, wire.ToWorker{PageMap: &ask}); err != nil {
			p.t.Fatal(err)
		}
		select {
		case m := <-p.maps:
			regions := int((ask.Pages + ask.PagesPerRegion - 1) / ask.PagesPerRegion)
			if m.Token != token || len(m.Shared) != regions || len(m.Modified) != regions {
				p.t.Fatalf("asked %+v, got %+v", ask, m)
			}
			for i := range m.Shared {
				if n := uint64(m.Shared[i] + m.Modified[i]); n > ask.PagesPerRegion {
					p.t.Fatalf("region %d has %d pages", i, n)
				}
				shared += int(m.Shared[i])
				modified += int(m.Modified[i])
			}
		case <-deadline:
			p.t.Fatalf("no answer\n%s", p.log())
		}
	}
	return shared, modified
}

func TestPageMap(t *testing.T) {
	ask := wire.WorkerMapAsk{Pages: 16 << 20 / ident.PageSize, PagesPerRegion: 100}
	t.Run("spanning", func(t *testing.T) {
		v := startVM(t, "count", "0 100", 16*ident.MiB, 1, 1)
		for _, p := range v.parts {
			shared, modified := p.askMap(ask)
			t.Logf("part %v: %d shared, %d modified", p.ready.Part, shared, modified)
		}
	})
	t.Run("alone", func(t *testing.T) {
		v := startVM(t, "count", "0 100", 16*ident.MiB, 1)
		if shared, modified := v.parts[0].askMap(ask); shared != 0 || modified == 0 {
			t.Errorf("%d shared, %d modified", shared, modified)
		}
		// More regions than an answer may have, or none: no answer, and no harm.
		for _, bad := range []wire.WorkerMapAsk{{Pages: 1 << 40, PagesPerRegion: 0}, {Pages: 16 << 20, PagesPerRegion: 0}} {
			if err := wire.WriteJSON(v.parts[0].conn, wire.ToWorker{PageMap: &bad}); err != nil {
				t.Fatal(err)
			}
		}
		v.parts[0].askMap(ask)
	})
}
