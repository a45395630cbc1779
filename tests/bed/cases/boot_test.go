package cases

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/vmm/machine"
)

func bootAndPowerOff(t *testing.T, kernel, version string, options ...option) *guest {
	t.Helper()
	start := time.Now()
	g := startGuest(t, kernel, initrd(t, version, `
echo HELLO from $(uname -r) on $(nproc) cpus
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
poweroff -f`), options...)
	g.finish(t, machine.PoweredOff)
	g.mustPrint(t, "HELLO from "+version)
	t.Logf("booted and powered off in %s, %+v", since(start), g.Board.Counters())
	return g
}

func TestBootPVH612(t *testing.T) { bootAndPowerOff(t, "vmlinux-6.12", "6.12") }

// TestBootVerbose is for people who look for what a kernel stumbles over.
func TestBootVerbose(t *testing.T) {
	bootAndPowerOff(t, "vmlinux-6.12", "6.12", withCmdline("debug earlyprintk=serial,ttyS0 ignore_loglevel"))
}

func TestBootPVH61(t *testing.T) { bootAndPowerOff(t, "vmlinux-6.1", "6.1") }

func TestBootBzImage612(t *testing.T) { bootAndPowerOff(t, "vmlinuz-6.12", "6.12", withCompressed) }
