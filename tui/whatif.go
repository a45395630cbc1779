package tui

import (
	"slices"
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
)

// ifDead says what the loss of some servers would mean, from what was last seen: which VMs would be lost, which would run on until they
// touch a page that is gone, and whether the others could still agree. dies tells the servers that die.
func ifDead(s *feed.Snapshot, dies func(*api.Server) bool) string {
	dead := map[string]bool{}
	var voters, left int
	for _, x := range s.Servers {
		gone := dies(x)
		if gone {
			dead[x.GetName()] = true
		}
		if x.GetVoter() {
			voters++
			if !gone && x.GetState() == api.ServerState_SERVER_STATE_LIVE {
				left++
			}
		}
	}
	var lost, wounded []string
	for _, vm := range s.VMs {
		if vm.GetState().Ended() || !slices.ContainsFunc(vm.GetWorkers(), func(w *api.Worker) bool { return dead[w.GetServer()] }) {
			continue
		}
		// Without its home a VM has no devices; so it cannot wait for a touch.
		if vm.GetOnLoss() == api.OnLoss_ON_LOSS_TOUCH && !dead[vm.GetHome()] {
			wounded = append(wounded, vm.GetName())
		} else {
			lost = append(lost, vm.GetName())
		}
	}
	parts := []string{"no VM is lost"}
	if len(lost) > 0 {
		parts[0] = plural(len(lost), "VM is", "VMs are") + " lost: " + some(lost)
	}
	if len(wounded) > 0 {
		parts = append(parts, plural(len(wounded), "VM runs", "VMs run")+" on until a lost page is touched: "+some(wounded))
	}
	quorum := "the quorum is kept"
	if left <= voters/2 {
		quorum = "THE QUORUM IS LOST"
	}
	return strings.Join(append(parts, quorum+" ("+strconv.Itoa(left)+" of "+plural(voters, "voter", "voters")+" left)"), "; ")
}

// some lists names, but not without end.
func some(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and " + strconv.Itoa(len(names)-most) + " more"
	}
	return strings.Join(names, ", ")
}
