package worker

import (
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// The watchdog notices what stands still though nothing says so: a vCPU that does not leave the guest when it is kicked, a page or an answer of the
// home part that does not come although every server's lease holds (peers that the monitors can reach and the workers cannot). It counts its own
// ticks, not time: a process that was stopped and continued has missed nothing.
//
//	vCPU:    in the guest --probeTicks--> kicked --zapTicks--> guest mapping dropped, so that every page is granted anew --failTicks--> part failed
//	waiting: open request --waitTicks--> part failed
//
// A part that fails is lost as its server's would be: a protected VM goes on from a replica, any other ends and says why.
const (
	watchdogEvery = 500 * time.Millisecond
	probeTicks    = 2
	zapTicks      = 6
	failTicks     = 16
	waitTicks     = 20
)

// verdict is what the watchdog wants done.
type verdict struct {
	kick []int  // vCPUs
	zap  []int  // vCPUs that stay in the guest: their pages are to be granted anew
	fail string // why the part has to be given up, "" if it has not
}

// seen is what a tick of the watchdog sees.
type seen struct {
	leased bool
	wanted []ident.PageNo // with open requests
	inside []uint64       // by vCPU: number of its entry into the guest, 0 while it is not inside
	asking []bool         // by vCPU: waits for the home part, which does not answer
}

// watchdog counts for how many ticks things stand still.
type watchdog struct {
	wanted map[ident.PageNo]int
	inside []uint64
	stuck  []int
	asking []int
}

// tick judges what is seen now.
func (d *watchdog) tick(s seen) (v verdict) {
	if !s.leased { // nothing is due: nobody may answer, or nobody can be asked
		*d = watchdog{}
		return v
	}
	for len(d.stuck) < len(s.inside) {
		d.inside, d.stuck, d.asking = append(d.inside, 0), append(d.stuck, 0), append(d.asking, 0)
	}
	waits := make(map[ident.PageNo]int, len(s.wanted))
	for _, page := range s.wanted {
		waits[page] = d.wanted[page] + 1
		if waits[page] >= waitTicks && v.fail == "" {
			v.fail = fmt.Sprintf("page 0x%x has not come for %v: the vm's other parts cannot be reached", page, waitTicks*watchdogEvery)
		}
	}
	d.wanted = waits
	for i, entry := range s.inside {
		now := 0
		switch {
		case entry == 0 || entry != d.inside[i]:
			d.stuck[i] = 0
		case len(s.wanted) == 0 || d.stuck[i] < probeTicks: // one that waits for a page is not stuck: the page is late
			d.stuck[i]++
			now = d.stuck[i]
		}
		d.inside[i] = entry
		switch now {
		case probeTicks:
			v.kick = append(v.kick, i)
		case zapTicks:
			v.zap = append(v.zap, i)
		case failTicks:
			v.fail = fmt.Sprintf("vCPU %d has not left the guest for %v after it was kicked", i, (failTicks-probeTicks)*watchdogEvery)
		}
		if d.asking[i]++; !s.asking[i] {
			d.asking[i] = 0
		}
		if d.asking[i] >= waitTicks {
			v.fail = fmt.Sprintf("the vm's home has not answered vCPU %d for %v: it cannot be reached", i, waitTicks*watchdogEvery)
		}
	}
	return v
}

// look collects what a tick sees.
func (w *Worker) look(vcpus []*vcpu) seen {
	s := seen{leased: w.guard.leased()}
	w.plane.mu.Lock()
	w.plane.core.Wanted(func(page ident.PageNo) bool { s.wanted = append(s.wanted, page); return len(s.wanted) < 1000 })
	w.plane.mu.Unlock()
	for _, v := range vcpus {
		entry := uint64(0)
		if v.inside.Load() {
			entry = v.exits.Load() + 1
		}
		s.inside, s.asking = append(s.inside, entry), append(s.asking, v.asking.Load())
	}
	return s
}

// watchProgress is the watchdog's loop, until the VM has ended here.
func (w *Worker) watchProgress() {
	ticker := time.NewTicker(w.patient(watchdogEvery))
	defer ticker.Stop()
	var d watchdog
	for {
		select {
		case <-ticker.C:
		case <-w.ctx.Done():
			return
		}
		vcpus := w.residents()
		v := d.tick(w.look(vcpus))
		for _, i := range v.kick {
			vcpus[i].cpu.Kick()
		}
		for _, i := range v.zap {
			w.log.Warn().Int("vcpu", i).Msg("a vCPU does not leave the guest: its pages are granted anew")
			if err := w.plane.regrant(); err != nil {
				w.fail(err)
			}
		}
		if v.fail != "" {
			w.fail(fmt.Errorf("%s", v.fail))
		}
	}
}

// regrant takes all pages out of the guest's page tables. What the part holds is mapped again when it is touched: nothing changes for anybody else.
func (p *plane) regrant() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	return p.ram.Revoke(0, p.ram.Pages())
}
