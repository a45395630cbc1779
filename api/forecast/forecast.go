// Package forecast says what the loss of servers would mean: for whom, from what the control API shows, by the rules that package recovery decides
// by when it comes. A test compares the two.
package forecast

import (
	"fmt"
	"strings"

	"github.com/cellvisor/cellvisor/api"
)

// Forecast says what the loss of some servers would mean now.
type Forecast struct {
	Kill         []string `json:"kill"` // servers
	Epoch        uint64   `json:"epoch"`
	Quorum       bool     `json:"quorum"` // of what is left
	VotersLeft   int      `json:"voters_left"`
	VotersTotal  int      `json:"voters_total"`
	VotersNeeded int      `json:"voters_needed"`
	VMs          []VM     `json:"vms"`
}

// VM is what would become of one VM.
type VM struct {
	VM      string `json:"vm"`
	Fate    string `json:"fate"` // untouched, lost, continues, recovered, unprotected, paused
	Reason  string `json:"reason"`
	Standby string `json:"standby"` // the server that would take over
}

// Of forecasts the loss of the cells and servers of these names, from lists that the API gave. A name that it does not know is an error.
func Of(epoch uint64, servers []*api.Server, vms []*api.VM, names []string) (Forecast, error) {
	f := Forecast{Epoch: epoch, VMs: []VM{}}
	gone := make(map[string]bool)
	for _, name := range names {
		known := false
		for _, s := range servers {
			if s.GetName() == name || s.GetCell() == name {
				known, gone[s.GetName()] = true, true
			}
		}
		if !known {
			return f, fmt.Errorf("%q is neither a cell nor a server of this cluster", name)
		}
	}
	for _, s := range servers {
		if gone[s.GetName()] {
			f.Kill = append(f.Kill, s.GetName())
		}
		if s.GetVoter() {
			f.VotersTotal++
			if !gone[s.GetName()] && s.GetState() == api.ServerState_SERVER_STATE_LIVE {
				f.VotersLeft++
			}
		}
	}
	f.VotersNeeded = f.VotersTotal/2 + 1
	f.Quorum = f.VotersLeft >= f.VotersNeeded
	for _, v := range vms {
		if !v.GetState().Ended() {
			f.VMs = append(f.VMs, f.Of(v, gone, "a part of it is on "+strings.Join(f.Kill, ", ")))
		}
	}
	return f, nil
}

// Of forecasts one VM by the rules of package recovery, from what the API shows: nothing of it is there; only standbys are; a standby that holds
// a checkpoint takes over; it goes on without its lost part until it touches a page of it; it is lost.
func (f *Forecast) Of(v *api.VM, gone map[string]bool, what string) VM {
	out := VM{VM: v.GetName(), Fate: "lost", Reason: what + unprotectedWhy(v)}
	var standby string
	left, members, hit := 0, 0, 0
	for _, w := range v.GetWorkers() {
		switch {
		case w.GetLost():
		case gone[w.GetServer()] && w.GetStandby():
			hit++
		case gone[w.GetServer()]:
			hit, members = hit+1, members+1
		case !w.GetStandby():
			left++
		case standby == "" && w.GetReady() && v.GetProtection() == "safe":
			standby = w.GetServer()
		}
	}
	running := v.GetState() == api.VMState_VM_STATE_RUNNING || v.GetState() == api.VMState_VM_STATE_PAUSED
	switch {
	case hit == 0:
		out.Fate, out.Reason = "untouched", "no part of it is there"
	case members == 0:
		out.Fate, out.Reason = "unprotected", "runs on; only its standby is there"
	case running && standby != "":
		out.Fate, out.Standby, out.Reason = "recovered", standby, "goes on from its replica on "+standby
	case left == 0 || !running || v.GetOnLoss() != api.OnLoss_ON_LOSS_TOUCH:
	case gone[v.GetHome()]:
		out.Reason += "; its home is there, and with it its devices"
	default:
		out.Fate, out.Reason = "continues", "until it touches a page that was there (on-loss touch)"
	}
	if !f.Quorum {
		out.Reason = fmt.Sprintf("without a quorum it stands still until voters are back; then %s: %s", out.Fate, out.Reason)
		out.Fate = "paused"
	}
	return out
}

// unprotectedWhy says why protection did not help a VM that asked for it.
func unprotectedWhy(v *api.VM) string {
	if p := v.GetProtect(); p == "" || p == "none" {
		return "; it has no protection"
	}
	if p := v.GetProtection(); p != "safe" {
		return fmt.Sprintf("; its protection is %s now", p)
	}
	return "; its standby would be lost, too"
}

// Costs tells whether a VM or the quorum would be lost.
func (f Forecast) Costs() bool {
	for _, v := range f.VMs {
		if v.Fate == "lost" || v.Fate == "paused" {
			return true
		}
	}
	return !f.Quorum
}
