package worker

import (
	"strconv"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
	"github.com/cellvisor/cellvisor/wire"
)

// optionPatience gives the parts of a VM so many times the usual time to answer each other. It is for machines on which all takes that much
// longer, like an emulated one: there, asking again after the usual time only adds to what keeps everybody from answering.
const (
	optionPatience = "patience"
	maxPatience    = 64
)

func patienceOf(spec wire.WorkerSpec) int {
	if n, err := strconv.Atoi(spec.Options[optionPatience]); err == nil && n >= 1 && n <= maxPatience {
		return n
	}
	return 1
}

// patient stretches a time that another part has for an answer.
func (w *Worker) patient(d time.Duration) time.Duration {
	return d * time.Duration(patienceOf(w.spec))
}

// withPatience stretches the page protocol's times.
func withPatience(c mem.Config, patience int) mem.Config {
	if n := ident.Micros(patience); n > 1 {
		c.Retry, c.RetryMax, c.Deadline = n*mem.DefaultRetry, n*mem.DefaultRetryMax, n*mem.DefaultDeadline
	}
	return c
}

// stintOf is how long a part keeps what it is granted when it is its turn: the VM's option "stint"; 0, parts take no turns.
func stintOf(spec wire.WorkerSpec) ident.Micros {
	if d, err := time.ParseDuration(spec.Options["stint"]); err == nil && d > 0 {
		return ident.Micros(d.Microseconds())
	}
	return 0
}

// yield lets the other parts have what this one keeps for its stint, if no vCPU runs here.
func (w *Worker) yield() {
	if stintOf(w.spec) == 0 {
		return
	}
	for _, v := range w.residents() {
		if v.inside.Load() {
			return
		}
	}
	w.plane.turn(mem.EventYield)
}

// interrupts tells the page protocol that a vCPU interrupts one of another part, or is interrupted: who sends an interrupt often waits for what comes of
// it, so the turn goes with it.
func (w *Worker) interrupts(kind mem.EventKind) {
	if stintOf(w.spec) != 0 {
		w.plane.turn(kind)
	}
}

func (p *plane) turn(kind mem.EventKind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && p.guard.mayAct() {
		p.step(bootMicros(), mem.Event{Kind: kind}, nil)
		p.settle()
	}
}

// hintEvery is how often at most a peer is suspected: a page that does not come is one reason, and a thousand are no better one.
const hintEvery = 50 * ident.Millisecond

// hints remembers when each peer was suspected last.
type hints struct {
	mu sync.Mutex
	at map[ident.Part]ident.Micros // protected by mu
}

// due tells whether a peer may be suspected again, and notes that it is.
func (h *hints) due(part ident.Part, now ident.Micros) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last, ok := h.at[part]; ok && now-last < hintEvery {
		return false
	}
	if h.at == nil {
		h.at = make(map[ident.Part]ident.Micros)
	}
	h.at[part] = now
	return true
}

// companyPages is how many pages come along at most with one that is asked for, where parts take turns.
const companyPages = 64

func companyOf(spec wire.WorkerSpec) int {
	if stintOf(spec) == 0 {
		return 0
	}
	return companyPages
}
