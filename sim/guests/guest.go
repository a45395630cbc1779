package guests

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// guest is the state of a VM's program: what a checkpoint holds, as a value. The log is only ever appended to, so that copies may share it.
type guest struct {
	program program
	ran     ident.Micros // on its vCPUs
	log     []record     // made so far
	base    int          // of these, how many before it booted last
	done    bool         // it has asked for its end
}

// record is an output record, and the life of the VM in which it was made: a guest that goes back and runs again makes other records than before, as
// one that looks at a clock does.
type record struct {
	value uint32
	epoch ident.Epoch
}

// program models a built-in payload.
type program struct {
	name    string
	count   int // records before the end; 0: for ever
	rate    int // records a second, or in the end
	seconds int // before the end; 0: for ever
}

// Modelled tells whether a built-in payload has a model, and reads its arguments.
func Modelled(builtin, args string) (program, error) {
	p := program{name: builtin}
	switch builtin {
	case "count":
		p.count, p.rate = number(args, 0, 100), number(args, 1, 100)
		if p.rate == 0 {
			p.rate = 10_000
		}
	case "hello":
		p.count, p.rate = 10, 10_000
	case "idle":
	case "dirty":
		p.seconds = number(args, 2, 10)
	case "lock":
		p.seconds = 1 + number(args, 0, 5000)/5000
	default:
		return p, fmt.Errorf("payload %s has no model on the simulator: count, dirty, hello, idle and lock have", builtin)
	}
	return p, nil
}

// number reads the argument at a position as a payload does.
func number(args string, at, otherwise int) int {
	if fields := strings.Fields(args); at < len(fields) {
		if n, err := strconv.Atoi(fields[at]); err == nil && n >= 0 {
			return n
		}
	}
	return otherwise
}

// run lets the program run for a while.
func (g *guest) run(span ident.Micros, epoch ident.Epoch) {
	if g.done {
		return
	}
	g.ran += span
	p := &g.program
	if p.rate > 0 {
		due := int(int64(g.ran) * int64(p.rate) / int64(ident.Second))
		if p.count > 0 {
			due = min(due, p.count)
			g.done = due == p.count
		}
		for len(g.log)-g.base < due {
			g.log = append(g.log, record{uint32(len(g.log) - g.base), epoch})
		}
	}
	if p.seconds > 0 && g.ran >= ident.Micros(p.seconds)*ident.Second {
		g.done = true
	}
}

// boot starts the program anew. What it has put out stays.
func (g *guest) boot() { g.ran, g.done, g.base = 0, false, len(g.log) }

// saved is a copy that stays as it is.
func (g *guest) saved() guest {
	out := *g
	out.log = g.log[:len(g.log):len(g.log)]
	return out
}
