package recovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// Loss is what a view change took away.
type Loss struct {
	Epoch   ident.Epoch // of the new view
	Servers []LostServer
}

// LostServer is one excluded incarnation of a server.
type LostServer struct {
	Server      ident.ServerID
	Name        ident.ServerName
	Cell        ident.CellName
	Incarnation ident.Incarnation
	WholeCell   bool // nothing of its cell is left in the view
}

// VM is what containment must know of one active VM.
type VM struct {
	Running     bool // as against starting
	OnLossTouch bool
	Home        ident.Part
	Parts       []Part
}

// Part is one part of a VM.
type Part struct {
	Part        ident.Part
	Server      ident.ServerID
	Incarnation ident.Incarnation
	Cell        ident.CellName
	Gone        bool // lost earlier
	Standby     bool // holds a replica and runs nothing
	Holds       bool // it has a checkpoint that the VM can go back to
	Lenders     []Lender
}

// Lender is a server that holds memory for a part, which is lost with it.
type Lender struct {
	Server      ident.ServerID
	Incarnation ident.Incarnation
}

// on tells whether the part is lost with a server.
func (p *Part) on(l LostServer) bool {
	return l.Server == p.Server && l.Incarnation == p.Incarnation || slices.Contains(p.Lenders, Lender{l.Server, l.Incarnation})
}

// Fate is what becomes of a VM.
type Fate uint8

// Fates.
const (
	Untouched Fate = iota
	Lost
	Continues
	Restored    // from the replica of part Image
	Unprotected // only standbys were lost
)

// Decision is what becomes of a VM, and why.
type Decision struct {
	Fate   Fate
	Reason string       // for operators: "cell b lost in epoch 7"
	Gone   []ident.Part // parts that this loss took, in order
	Image  ident.Part   // of Restored: the standby that takes over
}

// Contain decides what a loss means to one active VM.
func Contain(loss Loss, vm VM) Decision {
	var gone []ident.Part
	var lost []LostServer
	left, members := 0, 0
	image, best := -1, 0
	for _, p := range vm.Parts {
		if p.Gone {
			continue
		}
		i := slices.IndexFunc(loss.Servers, p.on)
		if i < 0 {
			if !p.Standby {
				left++
			}
			if doubt := doubts(loss, p); p.Holds && (image < 0 || doubt < best) {
				image, best = int(p.Part), doubt
			}
			continue
		}
		if !p.Standby {
			members++
		}
		gone = append(gone, p.Part)
		lost = append(lost, loss.Servers[i])
	}
	if len(gone) == 0 {
		return Decision{Fate: Untouched}
	}
	d := Decision{Fate: Lost, Reason: Reason(loss.Epoch, lost), Gone: gone}
	switch {
	case members == 0:
		d.Fate = Unprotected
	case vm.Running && image >= 0:
		d.Fate, d.Image = Restored, ident.Part(image)
	case left == 0 || !vm.OnLossTouch || !vm.Running:
	case slices.Contains(gone, vm.Home):
		d.Reason += "; the vm's home was there, and with it its devices"
	default:
		d.Fate = Continues
	}
	return d
}

// doubts tells how much speaks against a part that holds as the image. One in a cell that has just lost a server may be gone as well, and not known
// to be. And the image of a recovery that is under way is better than a standby, which then stays as one more to go back to.
func doubts(loss Loss, p Part) int {
	n := 0
	if slices.ContainsFunc(loss.Servers, func(l LostServer) bool { return l.Cell == p.Cell }) {
		n += 2
	}
	if p.Standby {
		n++
	}
	return n
}

// Reason names what was lost: whole cells as such, single servers with their cell, each once.
func Reason(epoch ident.Epoch, lost []LostServer) string {
	var what []string
	for _, l := range lost {
		name := fmt.Sprintf("server %s of cell %s", l.Name, l.Cell)
		if l.WholeCell {
			name = fmt.Sprintf("cell %s", l.Cell)
		}
		if !slices.Contains(what, name) {
			what = append(what, name)
		}
	}
	slices.Sort(what)
	return fmt.Sprintf("%s lost in epoch %d", strings.Join(what, " and "), epoch)
}
