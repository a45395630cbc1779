package locality

import (
	"math/rand/v2"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Class is what a world is for.
type Class uint8

// The classes.
const (
	Compare Class = iota
	Steady
	Faulty
)

// Shape is a world: how many servers, slots and vCPUs there are, and what these do.
type Shape struct {
	Seed         uint64
	Class        Class
	Parts, Slots int
	VCPUs        int
	Rounds       int
	Phases       []Phase // of each round
	Scale        int
	Network      kernel.Network
	Shift        bool // roles change with each round
	LostReports  int  // of 1000
	LostWishes   int
	Cordons      int  // and as many that end
	Told         bool // home knows how many slots servers have
	Canary       string
}

// Result is what a run came to.
type Result struct {
	Times  [phaseKinds]ident.Micros // by kind of phase, all rounds together
	Total  ident.Micros
	Remote uint64
	Moves  int
	Late   int // moves in the second half of the time
	Asked  int // wishes

	Homes, LateHomes int // directories that were to go elsewhere, and in the second half of the time
}

// Measured is the network between two workers of one machine: 30 us are what waking another process's thread takes there.
func Measured() kernel.Network { return kernel.Network{DelayMin: 20, DelayMax: 35, InOrder: true} }

// Mix is a VM of three vCPUs on two servers of two slots that does all kinds of work in turn, with roles that change: that of `bench locality`.
func Mix(seed uint64, rounds, scale int) Shape {
	return Shape{Seed: seed, Parts: 2, Slots: 2, VCPUs: 3, Rounds: rounds, Scale: scale, Phases: []Phase{Private, Fill, Shared, Pipe, Lock, Migratory, Hot}, Shift: true, Told: true,
		Network: Measured()}
}

// works are what a round may be made of.
var works = [][]Phase{{Private}, {Fill, Shared}, {Pipe}, {Lock}, {Migratory}, {Hot}}

// draw draws a world.
func draw(seed uint64, canary string) Shape {
	r := rand.New(rand.NewPCG(seed, 0x6c6f63))
	s := Shape{Seed: seed, Parts: 2 + r.IntN(3), Slots: 1 + r.IntN(3), Canary: canary, Network: Measured()}
	s.VCPUs = min(2+r.IntN(4), s.Parts*s.Slots, maxVCPUs)
	s.Network.DelayMax += ident.Micros(r.IntN(60))
	switch r.IntN(8) {
	case 0, 1:
		s.Class, s.Rounds, s.Scale = Steady, 1<<30, 1+r.IntN(8)
		s.Phases = works[r.IntN(len(works))]
	case 2, 3:
		s.Class = Faulty
		s.shifting(r)
		s.Network.InOrder = false
		s.Network.TailShare, s.Network.TailMax = r.IntN(5), ident.Millisecond
		s.Network.LossShare, s.Network.RepeatShare = r.IntN(3), r.IntN(20)
		s.LostReports, s.LostWishes, s.Cordons = r.IntN(200), r.IntN(300), r.IntN(4)
	default:
		s.shifting(r)
	}
	s.Told = s.Class == Compare || r.IntN(2) == 0
	return s
}

// shifting has the world do one thing after the other.
func (s *Shape) shifting(r *rand.Rand) {
	for range 1 + r.IntN(4) {
		s.Phases = append(s.Phases, works[r.IntN(len(works))]...)
	}
	s.Rounds, s.Scale, s.Shift = 2+r.IntN(4), 1+r.IntN(8), r.IntN(3) > 0
}
