package probe

import (
	"os"
	"strings"
)

// CPUModel names the host's processor: vendor, family and model. Two hosts with the same have the same registers to save and to restore.
func CPUModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	return cpuModel(string(text))
}

func cpuModel(info string) string {
	first, _, _ := strings.Cut(info, "\n\n")
	have := map[string]string{}
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		have[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var words []string
	for _, name := range []string{"vendor_id", "cpu family", "model"} {
		if v := have[name]; v != "" {
			words = append(words, v)
		}
	}
	if len(words) == 0 {
		return "unknown"
	}
	return strings.Join(words, " ")
}
