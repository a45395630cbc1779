package drill

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/forecast"
)

// Forecast says what the loss of some servers would mean now, and how long a recovery takes here.
type Forecast struct {
	forecast.Forecast

	Stages     []Stage `json:"stages"`      // of a recovery: the medians of those that this cluster has measured
	Measured   int     `json:"measured"`    // how many these were
	ExpectedMs int64   `json:"expected_ms"` // their sum: how long a recovered VM would stand still; 0 if none was measured
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
	lost, err := forecast.Of(st.GetEpoch(), servers, vms, names)
	f := Forecast{Forecast: lost}
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
	case slices.ContainsFunc(f.VMs, func(v forecast.VM) bool { return v.Fate == "recovered" }):
		out = append(out, "no recovery was measured here yet: a drill (lose-a-cell) or `cellvisor bench failover` tells how long one takes")
	}
	return out
}
