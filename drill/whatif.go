package drill

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/api"
)

// Forecast says what the loss of some servers would mean now.
type Forecast struct {
	Kill         []string     `json:"kill"` // servers
	Epoch        uint64       `json:"epoch"`
	Quorum       bool         `json:"quorum"` // of what is left
	VotersLeft   int          `json:"voters_left"`
	VotersTotal  int          `json:"voters_total"`
	VotersNeeded int          `json:"voters_needed"`
	VMs          []VMForecast `json:"vms"`

	Stages     []Stage `json:"stages"`      // of a recovery: the medians of those that this cluster has measured
	Measured   int     `json:"measured"`    // how many these were
	ExpectedMs int64   `json:"expected_ms"` // their sum: how long a recovered VM would stand still; 0 if none was measured
}

// VMForecast is what would become of one VM.
type VMForecast struct {
	VM      string `json:"vm"`
	Fate    string `json:"fate"` // untouched, lost, continues, recovered, unprotected, paused
	Reason  string `json:"reason"`
	Standby string `json:"standby"` // the server that would take over
}

// WhatIf asks the cluster how it is and forecasts the loss of servers and cells, named by the operator. It changes nothing.
func WhatIf(ctx context.Context, c Cluster, names []string) (Forecast, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return Forecast{}, err
	}
	servers, err := c.Servers(ctx)
	if err != nil {
		return Forecast{}, err
	}
	vms, err := c.VMs(ctx)
	if err != nil {
		return Forecast{}, err
	}
	f, err := forecast(st.GetEpoch(), servers, vms, names)
	if err != nil {
		return f, err
	}
	events, err := c.Events(ctx)
	if err != nil {
		return f, err
	}
	f.measure(events)
	return f, nil
}

// measure takes the typical length of each stage from the recoveries that the cluster has recorded.
func (f *Forecast) measure(events []*api.Event) {
	seen := make(map[string][]int64)
	for _, e := range events {
		switch e.GetType() {
		case "vm.recovered":
			f.Measured++
		case "recovery.stages":
		default:
			continue
		}
		for _, s := range stagesOf(e.GetFields()) {
			// A VM's own word on how long it was re-mapped and resumed counts, not the servers'.
			if own := s.Name == "remap" || s.Name == "resume"; own == (e.GetType() == "vm.recovered") && slices.Contains(stageOrder, s.Name) {
				seen[s.Name] = append(seen[s.Name], s.Micros)
			}
		}
	}
	f.Stages = []Stage{}
	total := int64(0)
	for _, name := range stageOrder {
		if list := seen[name]; len(list) > 0 && f.Measured > 0 {
			slices.Sort(list)
			f.Stages = append(f.Stages, Stage{Name: name, Micros: list[len(list)/2]})
			total += list[len(list)/2]
		}
	}
	f.ExpectedMs = (total + 999) / 1000
}

func forecast(epoch uint64, servers []*api.Server, vms []*api.VM, names []string) (Forecast, error) {
	f := Forecast{Epoch: epoch, VMs: []VMForecast{}}
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
			f.VMs = append(f.VMs, f.vm(v, gone, "a part of it is on "+strings.Join(f.Kill, ", ")))
		}
	}
	return f, nil
}

// vm forecasts one VM by the rules of package recovery, from what the API shows: nothing of it is there; only standbys are; a standby that holds
// a checkpoint takes over; it goes on without its lost part until it touches a page of it; it is lost.
func (f *Forecast) vm(v *api.VM, gone map[string]bool, what string) VMForecast {
	out := VMForecast{VM: v.GetName(), Fate: "lost", Reason: what + unprotectedWhy(v)}
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

// Lines gives the forecast for people.
func (f Forecast) Lines() []string {
	word := "kept"
	if !f.Quorum {
		word = "lost"
	}
	out := []string{
		fmt.Sprintf("if %s died now (epoch %d):", strings.Join(f.Kill, ", "), f.Epoch),
		fmt.Sprintf("quorum %s: %d of %d voters would be left, %d are needed", word, f.VotersLeft, f.VotersTotal, f.VotersNeeded),
	}
	if len(f.VMs) == 0 {
		out = append(out, "no VM runs")
	}
	for _, v := range f.VMs {
		line := fmt.Sprintf("VM %s: %s: %s", v.VM, v.Fate, v.Reason)
		if v.Fate == "recovered" && f.Measured > 0 {
			line += fmt.Sprintf(", after about %d ms", f.ExpectedMs)
		}
		out = append(out, line)
	}
	switch {
	case f.Measured > 0:
		out = append(out, fmt.Sprintf("recovery by stages, medians of %d recoveries here: %s", f.Measured, stageText(f.Stages)))
	case slices.ContainsFunc(f.VMs, func(v VMForecast) bool { return v.Fate == "recovered" }):
		out = append(out, "no recovery was measured here yet: a drill (lose-a-cell) or `cellvisor bench failover` tells how long one takes")
	}
	return out
}
