package recovery

import "github.com/cellvisor/cellvisor/ident"

// The adaptive time between checkpoints: as short as it can be without costing the VM more than a tenth of its speed. Longer than CutEveryMax
// it never is: output waits for as long, and then protection costs what it costs.
const (
	CutEveryMin = 20 * ident.Millisecond
	CutEveryMax = 200 * ident.Millisecond

	shareInverse = 10 // a cut that costs c is made every 10c at most

	// pageCost is what a dirty page costs the guest beside the pause: the fault of its first write after the cut, and the CPU time and cache
	// that its way to the standbys takes from the vCPUs. Measured: `cellvisor bench checkpoint`.
	pageCost ident.Micros = 5

	paceWeight = 4 // a cut's weight in the moving average is 1/paceWeight

	// outlier is how many times the average a cut counts as at most. On a busy host one cut in a hundred waits many milliseconds for a CPU; that says
	// nothing about the next, and output would wait for the following ones ten times as long. What stays expensive is believed after a few cuts.
	outlier = 4
)

// Pace knows what the checkpoints of one VM cost of late.
type Pace struct {
	cost ident.Micros // of one cut: a moving average; 0 before the first
}

// Cut takes note of a cut: how long it stopped the guest, and how many pages it found written.
func (p *Pace) Cut(pause ident.Micros, pages uint64) {
	cost := max(1, pause+ident.Micros(min(pages, 1<<32))*pageCost)
	if p.cost == 0 {
		p.cost = cost
		return
	}
	cost = min(cost, outlier*p.cost)
	p.cost = max(1, p.cost+(cost-p.cost)/paceWeight)
}

// Every is the time from one cut to the next.
func (p *Pace) Every() ident.Micros { return min(max(p.cost*shareInverse, CutEveryMin), CutEveryMax) }
