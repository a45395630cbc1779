package tui

import (
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/api/forecast"
	"github.com/cellvisor/cellvisor/tui/feed"
)

// fates are what the loss of servers can mean for VMs, the worst first, and the words for one and for many.
var fates = []struct{ fate, one, many string }{
	{"lost", "VM is lost", "VMs are lost"},
	{"paused", "VM stands still", "VMs stand still"},
	{"continues", "VM runs on until a lost page is touched", "VMs run on until a lost page is touched"},
	{"recovered", "VM goes on from its replica", "VMs go on from their replicas"},
	{"unprotected", "VM loses its replica", "VMs lose their replicas"},
}

// ifDead says what the loss of a cell or server would mean, from what was last seen: for the VMs that depend on it, and whether the others could still
// agree.
func ifDead(s *feed.Snapshot, name string) string {
	f, err := forecast.Of(s.Status.GetEpoch(), s.Servers, s.VMs, []string{name})
	if err != nil {
		return "not known any more"
	}
	names := make(map[string][]string)
	for _, v := range f.VMs {
		names[v.Fate] = append(names[v.Fate], v.VM)
	}
	var parts []string
	if len(names["lost"]) == 0 {
		parts = append(parts, "no VM is lost")
	}
	for _, x := range fates {
		if n := len(names[x.fate]); n > 0 {
			parts = append(parts, plural(n, x.one, x.many)+": "+some(names[x.fate]))
		}
	}
	quorum := "the quorum is kept"
	if !f.Quorum {
		quorum = "THE QUORUM IS LOST"
	}
	return strings.Join(append(parts, quorum+" ("+strconv.Itoa(f.VotersLeft)+" of "+plural(f.VotersTotal, "voter", "voters")+" left)"), "; ")
}

// some lists names, but not without end.
func some(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and " + strconv.Itoa(len(names)-most) + " more"
	}
	return strings.Join(names, ", ")
}
