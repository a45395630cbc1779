package worker

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/wire"
)

// answerMap tells serve which pages are here. It runs on a goroutine of its own: a large VM has millions.
func (w *Worker) answerMap(ask wire.WorkerMapAsk) {
	if w.plane == nil || ask.PagesPerRegion == 0 {
		return
	}
	pages := min(ask.Pages, w.plane.ram.Pages())
	if regionsOf(pages, ask.PagesPerRegion) > wire.WorkerMapRegions {
		return
	}
	go func() {
		m := &wire.WorkerPageMap{Token: ask.Token}
		if w.spans() {
			m.Shared, m.Modified = w.plane.count(ask.PagesPerRegion, w.present(pages))
		} else {
			m.Modified = make([]uint32, regionsOf(pages, ask.PagesPerRegion))
			m.Shared = make([]uint32, len(m.Modified))
			for page, here := range w.present(pages) {
				if here {
					m.Modified[uint64(page)/ask.PagesPerRegion]++
				}
			}
		}
		w.control.send(wire.FromWorker{PageMap: m})
	}()
}

func regionsOf(pages, perRegion uint64) uint64 { return (pages + perRegion - 1) / perRegion }

// count sums up by regions what the page protocol holds here. It lets go of the lock after every chunk: faults must not wait for it.
func (p *plane) count(perRegion uint64, present []bool) (shared, modified []uint32) {
	pages := uint64(len(present))
	shared, modified = make([]uint32, regionsOf(pages, perRegion)), make([]uint32, regionsOf(pages, perRegion))
	for from := uint64(0); from < pages; {
		region := from / perRegion
		to := min(pages, (region+1)*perRegion, from+mem.RegionPages)
		p.mu.Lock()
		s, m := p.core.Holdings(ident.PageNo(from), ident.PageNo(to), func(page ident.PageNo) bool { return present[page] })
		p.mu.Unlock()
		shared[region] += uint32(s)
		modified[region] += uint32(m)
		from = to
	}
	return shared, modified
}

// present tells by page number which pages of the memfd have contents.
func (w *Worker) present(pages uint64) []bool {
	memory := w.plane.ram
	out := make([]bool, pages)
	for at := ident.PageNo(0); uint64(at) < pages; {
		from, err := memory.NextData(at)
		if err == nil {
			at, err = memory.NextHole(from)
		}
		if err != nil {
			w.log.Debug().Err(err).Msg("map of pages")
			return out
		}
		for page := from; page < at && uint64(page) < pages; page++ {
			out[page] = true
		}
	}
	return out
}
