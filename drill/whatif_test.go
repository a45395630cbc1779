package drill

import (
	"testing"

	"github.com/cellvisor/cellvisor/api"
)

// How long a recovery takes is what recoveries took: the median of each stage, the VM's own word on its own stages.
func TestForecastOfTime(t *testing.T) {
	event := func(kind string, fields map[string]string) *api.Event { return &api.Event{Type: kind, Fields: fields} }
	var f Forecast
	f.measure([]*api.Event{
		event("recovery.stages", map[string]string{"detect_us": "30000", "agree_us": "2000", "fence_us": "12000", "remap_us": "1"}),
		event("recovery.stages", map[string]string{"detect_us": "50000", "agree_us": "3000", "fence_us": "14000"}),
		event("recovery.stages", map[string]string{"detect_us": "900000", "agree_us": "1000", "fence_us": "13000"}),
		event("vm.recovered", map[string]string{"remap_us": "800", "resume_us": "3100", "checkpoint": "9"}),
		event("vm.moved", map[string]string{"down_us": "5000"}),
	})
	if got := stageText(f.Stages); got != "detect 50.0 ms, agree 2.0 ms, fence 13.0 ms, remap 0.8 ms, resume 3.1 ms" || f.ExpectedMs != 69 || f.Measured != 1 {
		t.Errorf("%s, %d ms, %d recoveries", got, f.ExpectedMs, f.Measured)
	}
	var none Forecast
	none.measure(nil)
	if none.ExpectedMs != 0 || len(none.Stages) != 0 {
		t.Errorf("%+v", none)
	}
}
