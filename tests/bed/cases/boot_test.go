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
	long(t)
	bootAndPowerOff(t, "vmlinux-6.12", "6.12", withCmdline("debug earlyprintk=serial,ttyS0 ignore_loglevel"))
}

func TestBootPVH61(t *testing.T) {
	long(t)
	bootAndPowerOff(t, "vmlinux-6.1", "6.1")
}

func TestBootBzImage612(t *testing.T) {
	long(t)
	bootAndPowerOff(t, "vmlinuz-6.12", "6.12", withCompressed)
}

// TestSMP612 and its siblings fork a thousand processes and compute with checksums on all CPUs.
func TestSMP612(t *testing.T) { smpCase(t, "6.12", 2) }

func TestSMP61(t *testing.T) {
	long(t)
	smpCase(t, "6.1", 2)
}

const smpScript = `
echo CPUS $(nproc)
i=0; while [ $i -lt 1000 ]; do /bin/busybox true & i=$((i+1)); [ $((i%50)) = 0 ] && wait; done; wait; echo FORKED $i
for c in 0 1; do
  taskset $((1<<c)) sh -c 'for i in 1 2 3 4; do dd if=/dev/zero bs=256k count=8 2>/dev/null; done | sha256sum' >/tmp/sum$c &
done; wait
[ "$(cat /tmp/sum0)" = "$(cat /tmp/sum1)" ] && echo SUMS $(cat /tmp/sum0) || echo BAD sums $(cat /tmp/sum0 /tmp/sum1)
poweroff -f`

// smpSum is of 8 MiB of zeros.
const smpSum = "SUMS 2daeb1f36095b44b318410b3f4e8b5d989dcc7bb023d1426c492dab0a3053e74"

func smpCase(t *testing.T, version string, vcpus int) {
	start := time.Now()
	g := startGuest(t, "vmlinux-"+version, initrd(t, version, smpScript), withVCPUs(vcpus))
	g.finish(t, machine.PoweredOff)
	g.mustPrint(t, "CPUS 2", "FORKED 1000", smpSum)
	t.Logf("done in %s, %+v", since(start), g.Board.Counters())
}

// TestReboot612 reboots and then panics; each brings the machine back in place.
func TestReboot612(t *testing.T) {
	long(t)
	disk, _ := withDisk(t, 1<<20, "state")
	g := startGuest(t, "vmlinux-6.12", initrd(t, "6.12", `
n=$(dd if=/dev/vda bs=1 count=1 2>/dev/null | tr -d '\0'); n=$((n+1))
printf $n | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
echo LIFE $n
case $n in
1) reboot -f;;
2) echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger;;
esac
poweroff -f`, "virtio_blk"), disk, withRestart)
	o := g.finish(t, machine.PoweredOff)
	g.mustPrint(t, "LIFE 1", "LIFE 2", "LIFE 3")
	if o.Resets != 2 {
		t.Errorf("%d restarts, want 2", o.Resets)
	}
}

// TestTripleFault612 ends a machine by a reboot through a triple fault.
func TestTripleFault612(t *testing.T) {
	long(t)
	g := startGuest(t, "vmlinux-6.12", initrd(t, "6.12", "reboot -f"), withCmdline("reboot=t,force"))
	g.finish(t, machine.Faulted)
}
