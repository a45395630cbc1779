package server

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestSlotDistancesAreReadFromTheMachine(t *testing.T) {
	sys := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		full := filepath.Join(sys, "devices/system/cpu", path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Two nodes of four CPUs, two caches of the third level on each.
	for c := range 8 {
		write(fmt.Sprintf("cpu%d/cache/index0/level", c), "1")
		write(fmt.Sprintf("cpu%d/cache/index0/shared_cpu_list", c), fmt.Sprint(c))
		write(fmt.Sprintf("cpu%d/cache/index3/level", c), "3")
		write(fmt.Sprintf("cpu%d/cache/index3/shared_cpu_list", c), fmt.Sprintf("%d-%d", c&^1, c|1))
		write(fmt.Sprintf("cpu%d/node%d/x", c, c/4), "")
	}
	d := slotDistances(sys, []uint16{0, 1, 2, 4})
	for i, want := range []uint8{sameCPU, sameCache, sameNode, sameServer} {
		if d[0][i] != want || d[i][0] != want {
			t.Errorf("from slot 0 to slot %d: %d and %d, want %d", i, d[0][i], d[i][0], want)
		}
	}
	if d := slotDistances(t.TempDir(), []uint16{0, 1}); d[0][1] != sameServer {
		t.Errorf("of a machine that tells nothing: %v", d)
	}
}
