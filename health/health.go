// Package health decides from measurements of a server's hardware when it had better be taken out of use, before it fails. It is pure: measurements and
// the time are told, what should be done comes back with its evidence.
//
//	quiet --the trend reaches the rule's limit--> found, once --the trend is below the limit again--> quiet
//
// A rule looks at one measure: either by how much a counter has risen within a span, or whether a level has been at its limit for a span. A counter that
// falls was set back, as at a reboot of what counts: its history begins anew.
package health

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Kind is how a rule looks at its measure.
type Kind string

// Kinds of rules.
const (
	Rise  Kind = "rise"  // the counter rose by Limit at least within Span
	Level Kind = "level" // the value was Limit or more throughout Span
)

// Act is what a finding asks for.
type Act string

// Acts, the milder first.
const (
	Cordon Act = "cordon"
	Drain  Act = "drain"
)

// Rule is one thing that must not happen.
type Rule struct {
	Name    string
	Measure string
	Kind    Kind
	Limit   int64
	Span    ident.Micros
	Act     Act
}

// Measures that a server reads by itself where the machine has them.
const (
	MemoryCorrected   = "memory.corrected"   // errors that ECC corrected, since boot
	MemoryUncorrected = "memory.uncorrected" // errors that it could not correct, since boot
	Temperature       = "temperature"        // the hottest sensor, °C
	LinkErrors        = "link.errors"        // of all network interfaces, since boot
	DiskErrors        = "disk.errors"        // of all disks, since boot
)

// Defaults are the rules that hold unless a configuration says otherwise. Corrected errors that keep coming precede uncorrectable ones (Schroeder,
// Pinheiro, Weber: DRAM errors in the wild, 2009); the spans are long enough that a single bad hour of a link does not count.
func Defaults() []Rule {
	const hour = 3600 * ident.Second
	return []Rule{
		{"memory-corrected", MemoryCorrected, Rise, 10, hour, Cordon},
		{"memory-failing", MemoryCorrected, Rise, 100, hour, Drain},
		{"memory-uncorrected", MemoryUncorrected, Rise, 1, hour, Drain},
		{"hot", Temperature, Level, 90, 60 * ident.Second, Cordon},
		{"too-hot", Temperature, Level, 100, 30 * ident.Second, Drain},
		{"link", LinkErrors, Rise, 1000, 600 * ident.Second, Cordon},
		{"disk", DiskErrors, Rise, 10, hour, Drain},
	}
}

// Sample is one measure's value now.
type Sample struct {
	Measure string
	Value   int64
}

// Finding is a rule that was broken, and by what.
type Finding struct {
	Rule     Rule
	Value    int64        // now
	From     int64        // of a rise: the value at its begin
	Over     ident.Micros // the span that was really looked at
	Evidence string       // one sentence for people
}

// maxPoints bounds what is kept of a measure for one rule.
const maxPoints = 256

// Core follows the measures of one server.
type Core struct {
	rules []follower
}

// follower is one rule and what it has seen.
type follower struct {
	Rule
	points []point // of a rise: within the span, by time
	since  ident.Micros
	above  bool // of a level: since then
	found  bool
}

type point struct {
	at    ident.Micros
	value int64
}

// New returns a core that follows these rules.
func New(rules []Rule) *Core {
	c := &Core{}
	for _, r := range rules {
		c.rules = append(c.rules, follower{Rule: r})
	}
	return c
}

// Step takes in what was measured, and returns what was found, in the order of the rules. A measure that is missing leaves its rules as they are.
func (c *Core) Step(now ident.Micros, samples []Sample) []Finding {
	var out []Finding
	for i := range c.rules {
		f := &c.rules[i]
		at := slices.IndexFunc(samples, func(s Sample) bool { return s.Measure == f.Measure })
		if at < 0 {
			continue
		}
		if finding, found := f.step(now, samples[at].Value); found {
			out = append(out, finding)
		}
	}
	return out
}

func (f *follower) step(now ident.Micros, value int64) (Finding, bool) {
	var finding Finding
	broken := false
	if f.Kind == Level {
		finding, broken = f.level(now, value)
	} else {
		finding, broken = f.rise(now, value)
	}
	first := broken && !f.found
	f.found = broken
	return finding, first
}

func (f *follower) level(now ident.Micros, value int64) (Finding, bool) {
	if value < f.Limit {
		f.above = false
		return Finding{}, false
	}
	if !f.above {
		f.above, f.since = true, now
	}
	over := now - f.since
	return Finding{Rule: f.Rule, Value: value, From: value, Over: over,
		Evidence: fmt.Sprintf("%s is %d, and has been %d or more for %s", f.Measure, value, f.Limit, span(over))}, over >= f.Span
}

func (f *follower) rise(now ident.Micros, value int64) (Finding, bool) {
	if n := len(f.points); n > 0 && value < f.points[n-1].value {
		f.points = f.points[:0]
	}
	f.points = append(f.points, point{now, value})
	old := 0
	for old < len(f.points)-1 && now-f.points[old].at > f.Span {
		old++
	}
	f.points = slices.Delete(f.points, 0, old)
	if len(f.points) > maxPoints { // every other one: the oldest stays, so that no rise is overlooked
		kept := f.points[:1]
		for i := 2; i < len(f.points); i += 2 {
			kept = append(kept, f.points[i])
		}
		f.points = kept
	}
	first := f.points[0]
	rise, over := value-first.value, now-first.at
	return Finding{Rule: f.Rule, Value: value, From: first.value, Over: over,
		Evidence: fmt.Sprintf("%s rose by %d, from %d to %d, within %s; the limit is %d within %s", f.Measure, rise, first.value, value, span(over), f.Limit, span(f.Span))}, rise >= f.Limit
}

// Check asserts the invariants.
func (c *Core) Check() {
	for i := range c.rules {
		f := &c.rules[i]
		if len(f.points) > maxPoints {
			panic(fmt.Sprintf("health: rule %s keeps %d points", f.Name, len(f.points)))
		}
		for j := 1; j < len(f.points); j++ {
			if f.points[j].at < f.points[j-1].at || f.points[j].value < f.points[j-1].value {
				panic(fmt.Sprintf("health: rule %s: the points of a rise fall", f.Name))
			}
		}
	}
}

// span writes a length of time for people.
func span(d ident.Micros) string {
	switch {
	case d >= 2*3600*ident.Second:
		return fmt.Sprintf("%d h", d/(3600*ident.Second))
	case d >= 120*ident.Second:
		return fmt.Sprintf("%d min", d/(60*ident.Second))
	}
	return fmt.Sprintf("%d.%d s", d/ident.Second, d%ident.Second/(100*ident.Millisecond))
}
