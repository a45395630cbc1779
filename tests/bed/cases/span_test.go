package cases

import (
	"os"
	"strings"
	"testing"
)

// spanScript computes on the processor that a machine starts with.
const spanScript = `
echo CPUS $(nproc) of $(cat /sys/devices/system/cpu/present) CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
sum() { dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum; }
echo SUMS0 $(sum)
i=0; while [ $i -lt 50 ]; do (exit 0) & i=$((i+1)); [ $((i%10)) = 0 ] && wait; done; wait; echo FORKED $i
`

// onlineScript brings the second processor online, computes on both, has them talk by pipes, and shows what interrupts they took.
const onlineScript = `
echo 1 >/sys/devices/system/cpu/cpu1/online; echo ONLINE $(nproc)
c=0; while [ $c -lt 2 ]; do
  taskset $((1<<c)) sh -c 'dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum' >/tmp/sum$c & c=$((c+1))
done; wait
c=0; while [ $c -lt 2 ]; do echo BOTH$c $(cat /tmp/sum$c); c=$((c+1)); done
mkfifo /tmp/forth /tmp/back
taskset 2 sh -c 'while read -r x; do echo $x; done' </tmp/forth >/tmp/back &
taskset 1 sh -c 'i=0; while [ $i -lt 50 ]; do echo $i >&3; read -r x <&4; [ "$x" = $i ] || echo BAD echo $x; i=$((i+1)); done' 3>/tmp/forth 4</tmp/back; wait; echo PONG
grep -E 'RES|CAL|TLB|LOC' /proc/interrupts
`

// spanStint: an AMD processor reaches a guest's page tables as if it wrote them, and QEMU's forgets at every exit what it found there. So two processors
// of one guest need the same few pages of tables all the time, several at once; each gets them for so long in turn.
const spanStint = "400ms"

// TestUpSpan612 runs one Linux on servers of two cells: its processors in two processes, its memory and its interrupts between them. It starts with one
// of them, on the first server. The other comes online only when asked for: it is not known to get that far here.
func TestUpSpan612(t *testing.T) {
	long(t)
	script, want := spanScript, []string{"CPUS 1 of 0-1 CLOCK tsc", strings.Replace(smpSum, "SUMS", "SUMS0", 1), "FORKED 50"}
	if os.Getenv("CELLVISOR_BED_SPAN") != "" {
		script += onlineScript
		want = append(want, "ONLINE 2", strings.Replace(smpSum, "SUMS", "BOTH0", 1), strings.Replace(smpSum, "SUMS", "BOTH1", 1), "PONG")
	}
	c := startCluster(t, "--cells", "2", "--sched", "host", "--plain-pages")
	c.must(c.linuxArgs("wide", "6.12", script+"poweroff -f", nil, "--vcpus", "2", "--span", "a,b",
		"--option", "window=3ms", "--option", "stint="+spanStint, "--option", "patience=16",
		"--cmdline", baseCmdline+" tsc=reliable nowatchdog maxcpus=1 noreplace-smp transparent_hugepage=never")...)
	c.ended("wide", want...)
	c.exitedWell("wide")
	t.Log(c.console("wide"))
}
