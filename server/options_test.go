package server

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/cells"
)

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for option, want := range map[string]string{
		"window=200us": "", "window=0": "", "stint=2ms": "", "patience=64": "", "srt=off": "", "anything=goes": "",
		"window=soon": "0s to 1s", "window=-1ms": "0s to 1s", "window=2": "0s to 1s", "window=": "0s to 1s", "stint=1h": "0s to 1s", "stint=1001ms": "0s to 1s",
		"patience=0": "1 to 64", "patience=65": "1 to 64", "patience=much": "1 to 64", "patience=1.5": "1 to 64",
	} {
		key, value, _ := strings.Cut(option, "=")
		err := checkOptions(&cells.VMSpec{Name: "x", Options: map[string]string{key: value}})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", option, err, want)
		}
	}
}
