package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/health"
)

// What a machine has is measured, what it lacks is left out, and a source that makes no sense does no harm.
func TestHealthMeasures(t *testing.T) {
	sys := t.TempDir()
	for path, text := range map[string]string{
		"devices/system/edac/mc/mc0/ce_count": "3\n", "devices/system/edac/mc/mc1/ce_count": "4\n",
		"class/hwmon/hwmon0/temp1_input": "41000\n", "class/hwmon/hwmon0/temp2_input": "73500\n", "class/hwmon/hwmon1/temp1_input": "garbage\n",
		"class/net/eth0/statistics/rx_errors": "5\n", "class/net/eth1/statistics/tx_errors": "6\n",
		"block/sda/device/ioerr_cnt": "0x1f\n",
	} {
		file := filepath.Join(sys, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plain := filepath.Join(sys, "plain")
	if err := os.WriteFile(plain, []byte("# fans\nfan.failures 2\n\nwhat is this\npsu.volts 12.5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{cfg: &config.Server{Health: config.Health{File: plain, Command: []string{"echo", "smart.reallocated 9"}}}, log: zerolog.Nop()}
	c := newCaretaker(s)
	c.sysfs = sys
	want := []health.Sample{
		{Measure: health.MemoryCorrected, Value: 7}, {Measure: health.Temperature, Value: 73}, {Measure: health.LinkErrors, Value: 11},
		{Measure: health.DiskErrors, Value: 31}, {Measure: "fan.failures", Value: 2}, {Measure: "smart.reallocated", Value: 9},
	}
	if got := c.measure(t.Context()); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	s.cfg.Health.File, s.cfg.Health.Command = "/nonexistent", []string{"false"}
	c.cfg = s.cfg.Health
	if got := c.measure(t.Context()); !slices.Equal(got, want[:4]) {
		t.Errorf("without the file and the command: %v", got)
	}
}
