// Package kernel is what simulated worlds are made of: virtual time, a heap of events with a deterministic order, one seeded source of
// randomness, a network with faults, and nodes that crash, pause and return.
//
// A world is single-threaded. Everything that happens in it follows from its seed, so a failing run is repeated by running the seed
// again; tracing is off in mass runs and switched on for the repetition.
//
//	         Pause              Crash
//	running --------> paused  ---------> crashed
//	        <--------         <---------
//	         Resume  (from running or paused; Restart brings a crashed node back as a new incarnation)
//
// A paused node's messages and timers wait, as under SIGSTOP, and its clock goes on. A crashed node's are gone; messages that it sent
// before still arrive. A message to a former incarnation never reaches a later one, as its connection is gone.
package kernel

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// NodeID is the index of a node in its world, in the order of Add.
type NodeID int

// Node is something that reacts to messages and to the time. now is the node's own clock.
type Node interface {
	// Receive takes in a message.
	Receive(now ident.Micros, from NodeID, msg any)
	// Wake is called at the time set by World.WakeAt.
	Wake(now ident.Micros)
}

// Network describes a link's behaviour. Shares are in thousandths.
type Network struct {
	DelayMin, DelayMax ident.Micros // evenly distributed
	TailShare          int          // share of messages that take up to TailMax
	TailMax            ident.Micros
	LossShare          int
	RepeatShare        int  // share of messages delivered twice
	InOrder            bool // messages of a link never overtake each other, as on one TCP connection
}

// Reliable is a network as one TCP connection per link makes it.
func Reliable() Network { return Network{DelayMin: 20, DelayMax: 60, InOrder: true} }

type nodeState uint8

const (
	running nodeState = iota
	paused
	crashed
)

type node struct {
	Node
	state       nodeState
	incarnation int
	wakeAt      ident.Micros // in world time; -1 is none
	held        []event      // while paused
	offset      ident.Micros
	driftPPM    int64
}

type link struct {
	net     *Network // nil: the world's
	cut     bool
	arrival ident.Micros // of the link's latest message, for InOrder
	held    ident.Micros // nothing arrives before
}

// World is one simulated world.
type World struct {
	// Tracing switches Tracef on.
	Tracing bool
	// Check, unless nil, is called after every event; its error ends the run.
	Check func() error

	rng    *rand.Rand
	now    ident.Micros
	seq    uint64
	events heap
	nodes  []*node
	links  map[[2]NodeID]*link
	net    Network
	trace  []string
	traced int
	err    error
	stats  Stats
}

// Stats count what happened in a world.
type Stats struct {
	Events, Sent, Lost, Repeated, Cut uint64
}

// traceLines is how much of the trace's end a report shows.
const traceLines = 400

// New returns an empty world.
func New(seed uint64, net Network) *World {
	return &World{rng: rand.New(rand.NewPCG(seed, 0x63656c6c)), net: net, links: make(map[[2]NodeID]*link)}
}

// Rand is the world's source of randomness.
func (w *World) Rand() *rand.Rand { return w.rng }

// Chance is true in share of 1000 cases.
func (w *World) Chance(share int) bool { return share > 0 && w.rng.IntN(1000) < share }

// Between returns a random time from a up to and including b.
func (w *World) Between(a, b ident.Micros) ident.Micros {
	if b <= a {
		return a
	}
	return a + ident.Micros(w.rng.Int64N(int64(b-a)+1))
}

// Now is the world's time. Nodes have clocks of their own, see Clock.
func (w *World) Now() ident.Micros { return w.now }

// Stats returns the counters.
func (w *World) Stats() Stats { return w.stats }

// Add adds a node and returns its ID.
func (w *World) Add(n Node) NodeID {
	w.nodes = append(w.nodes, &node{Node: n, wakeAt: -1})
	return NodeID(len(w.nodes) - 1)
}

// SetClock gives a node's clock an offset from the world's time and a drift in millionths. Call it before the world runs.
func (w *World) SetClock(id NodeID, offset ident.Micros, driftPPM int64) {
	w.nodes[id].offset, w.nodes[id].driftPPM = offset, driftPPM
}

// Clock is the time on a node's clock.
func (w *World) Clock(id NodeID) ident.Micros { return w.nodes[id].clock(w.now) }

func (n *node) clock(now ident.Micros) ident.Micros {
	return n.offset + now + ident.Micros(int64(now)*n.driftPPM/1_000_000)
}

// WakeAt sets the time, on the node's own clock, when its Wake is called; it takes the place of a time set before. Past times mean at once.
func (w *World) WakeAt(id NodeID, at ident.Micros) {
	n := w.nodes[id]
	world := at - n.offset
	world -= ident.Micros(int64(world) * n.driftPPM / (1_000_000 + n.driftPPM))
	for n.driftPPM != 0 && n.clock(world) < at { // the division rounded
		world++
	}
	world = max(world, w.now)
	if n.wakeAt == world {
		return
	}
	n.wakeAt = world
	w.push(event{at: world, kind: evWake, to: id, incarnation: n.incarnation})
}

// NoWake takes back what WakeAt set.
func (w *World) NoWake(id NodeID) { w.nodes[id].wakeAt = -1 }

// At calls f at world time at.
func (w *World) At(at ident.Micros, f func()) { w.push(event{at: max(at, w.now), kind: evCall, f: f}) }

// Send puts a message on the link. The receiver gets the same value: senders must not change it afterwards.
func (w *World) Send(from, to NodeID, msg any) {
	w.stats.Sent++
	l := w.link(from, to)
	net := &w.net
	if l.net != nil {
		net = l.net
	}
	if l.cut {
		w.stats.Cut++
		return
	}
	if w.Chance(net.LossShare) {
		w.stats.Lost++
		if w.Tracing {
			w.Tracef("lost %d>%d %v", from, to, msg)
		}
		return
	}
	w.deliver(from, to, msg, net, l)
	if w.Chance(net.RepeatShare) {
		w.stats.Repeated++
		w.deliver(from, to, msg, net, l)
	}
}

func (w *World) deliver(from, to NodeID, msg any, net *Network, l *link) {
	at := w.now + w.Between(net.DelayMin, net.DelayMax)
	if w.Chance(net.TailShare) {
		at = w.now + w.Between(net.DelayMax, net.TailMax)
	}
	if net.InOrder {
		at = max(at, l.arrival)
		l.arrival = at
	}
	at = max(at, l.held)
	w.push(event{at: at, kind: evMessage, from: from, to: to, msg: msg, incarnation: w.nodes[to].incarnation})
}

func (w *World) link(from, to NodeID) *link {
	l := w.links[[2]NodeID{from, to}]
	if l == nil {
		l = &link{}
		w.links[[2]NodeID{from, to}] = l
	}
	return l
}

// SetNetwork changes the behaviour of all links without one of their own, for messages sent from now on.
func (w *World) SetNetwork(net Network) { w.net = net }

// SetLink gives one direction of a link a behaviour of its own; nil takes it back.
func (w *World) SetLink(from, to NodeID, net *Network) { w.link(from, to).net = net }

// HoldLink lets nothing that is sent from now on arrive before a time.
func (w *World) HoldLink(from, to NodeID, until ident.Micros) { w.link(from, to).held = until }

// Cut makes both directions between a and b lose everything until Heal.
func (w *World) Cut(a, b NodeID) { w.link(a, b).cut, w.link(b, a).cut = true, true }

// CutOneWay makes the direction from a to b lose everything until Heal.
func (w *World) CutOneWay(a, b NodeID) { w.link(a, b).cut = true }

// Heal ends a cut between a and b.
func (w *World) Heal(a, b NodeID) { w.link(a, b).cut, w.link(b, a).cut = false, false }

// HealAll ends all cuts.
func (w *World) HealAll() {
	for a := range w.nodes {
		for b := range w.nodes {
			if l := w.links[[2]NodeID{NodeID(a), NodeID(b)}]; l != nil {
				l.cut = false
			}
		}
	}
}

// Crash stops a node for good, or until Restart.
func (w *World) Crash(id NodeID) {
	n := w.nodes[id]
	n.state, n.held, n.wakeAt = crashed, nil, -1
	n.incarnation++
}

// Restart brings a crashed node back as another one with the same ID.
func (w *World) Restart(id NodeID, as Node) { w.nodes[id].Node, w.nodes[id].state = as, running }

// Pause stops a node as SIGSTOP does.
func (w *World) Pause(id NodeID) {
	if w.nodes[id].state == running {
		w.nodes[id].state = paused
	}
}

// Resume continues a paused node: what it missed happens to it now, in order.
func (w *World) Resume(id NodeID) {
	n := w.nodes[id]
	if n.state != paused {
		return
	}
	n.state = running
	for _, e := range n.held {
		e.at = w.now
		w.push(e)
	}
	n.held = nil
}

// Running tells whether a node is neither paused nor crashed.
func (w *World) Running(id NodeID) bool { return w.nodes[id].state == running }

// Crashed tells whether a node has crashed and was not restarted.
func (w *World) Crashed(id NodeID) bool { return w.nodes[id].state == crashed }

// Fail ends the run with err; the first one counts.
func (w *World) Fail(err error) {
	if w.err == nil && err != nil {
		w.err = err
	}
}

// Run lets the world go on until its time is end, nothing is left to happen, or something fails.
func (w *World) Run(end ident.Micros) error {
	for w.err == nil && len(w.events) > 0 && w.events[0].at <= end {
		w.step()
	}
	if w.err == nil && w.now < end {
		w.now = end
	}
	return w.err
}

// RunUntil is Run that also ends when done is true, which it asks after each event.
func (w *World) RunUntil(end ident.Micros, done func() bool) error {
	for w.err == nil && !done() && len(w.events) > 0 && w.events[0].at <= end {
		w.step()
	}
	return w.err
}

func (w *World) step() {
	e := w.events.pop()
	w.now = e.at
	if e.kind == evCall {
		e.f()
		w.check()
		return
	}
	n := w.nodes[e.to]
	if n.state == crashed || e.incarnation != n.incarnation {
		return
	}
	if e.kind == evWake && n.wakeAt != e.at && !e.late {
		return // another time was set since
	}
	if e.kind == evWake && !e.late {
		e.late, n.wakeAt = true, -1
	}
	if n.state == paused {
		n.held = append(n.held, e)
		return
	}
	w.stats.Events++
	switch e.kind {
	case evWake:
		n.Wake(n.clock(w.now))
	case evMessage:
		n.Receive(n.clock(w.now), e.from, e.msg)
	}
	w.check()
}

func (w *World) check() {
	if w.Check != nil && w.err == nil {
		w.err = w.Check()
	}
}

// Tracef adds a line to the trace, if Tracing. Callers on hot paths ask for Tracing first, to spare the arguments.
func (w *World) Tracef(format string, args ...any) {
	if !w.Tracing {
		return
	}
	line := fmt.Sprintf("%9dus ", w.now) + fmt.Sprintf(format, args...)
	if len(w.trace) < traceLines {
		w.trace = append(w.trace, line)
	} else {
		w.trace[w.traced%traceLines] = line
	}
	w.traced++
}

// Trace returns the end of the trace.
func (w *World) Trace() string {
	if w.traced <= traceLines {
		return strings.Join(w.trace, "\n")
	}
	at := w.traced % traceLines
	return fmt.Sprintf("(%d lines before)\n", w.traced-traceLines) + strings.Join(w.trace[at:], "\n") + "\n" + strings.Join(w.trace[:at], "\n")
}
