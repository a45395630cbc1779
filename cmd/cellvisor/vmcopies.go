package main

import (
	"fmt"
	"strings"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

// protectionLine says how the VM is protected now, and how far the copies are that are being made.
func protectionLine(v *api.VM) string {
	now := view.OfVM(v).Protection
	var permille uint32
	for _, w := range v.GetWorkers() {
		permille = max(permille, w.GetCounters().GetSyncPermille())
	}
	if now == "syncing" && permille > 0 {
		return fmt.Sprintf("%s, %d %% copied", now, permille/10)
	}
	return now
}

// mirrorsLine says how the mirrors of the VM's disks are, where they are, and how far a copy is that is being made.
func mirrorsLine(v *api.VM) string {
	now := v.GetMirroring()
	if now == "" || now == "none" {
		return ""
	}
	var on []string
	var permille uint32
	for _, w := range v.GetWorkers() {
		permille = max(permille, w.GetCounters().GetSyncPermille())
		if w.GetMirror() && !w.GetLost() {
			on = append(on, w.GetServer())
		}
	}
	if now == "syncing" && permille > 0 {
		now = fmt.Sprintf("%s, %d %% compared", now, permille/10)
	}
	if len(on) > 0 {
		now += ", on " + strings.Join(on, ", ")
	}
	return now
}

// scrubTable says what checks of the copies of the VM's disks have come to.
func (a *app) scrubTable(v *api.VM) {
	lines := [][]string{{"DISKS CHECKED", "PASSES", "NOW", "DAMAGED", "REPAIRED", "UNREADABLE"}}
	for _, w := range v.GetWorkers() {
		s := w.GetCounters().GetScrub()
		if s == nil || len(w.GetVcpus()) > 0 && w.GetServer() != v.GetHome() {
			continue
		}
		now := "-"
		if s.GetChecking() {
			now = fmt.Sprintf("%d %%", s.GetPermille()/10)
		}
		lines = append(lines, []string{w.GetServer(), fmt.Sprint(s.GetPasses()), now, fmt.Sprint(s.GetDamaged()), fmt.Sprint(s.GetRepaired()),
			fmt.Sprint(s.GetUnreadable())})
	}
	if len(lines) > 1 {
		fmt.Fprintln(a.out)
		a.table(lines)
	}
}
