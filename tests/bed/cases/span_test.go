package cases

import (
	"context"
	"os"
	"strings"
	"testing"
)

// spanScript computes on all CPUs of a machine, has them talk by pipes, and shows what interrupts it took.
const spanScript = `
echo CPUS $(nproc) $(grep -c ^processor /proc/cpuinfo) CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
c=0; while [ $c -lt 2 ]; do
  taskset $((1<<c)) sh -c 'dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum' >/tmp/sum$c & c=$((c+1))
done; wait
c=0; while [ $c -lt 2 ]; do echo SUMS$c $(cat /tmp/sum$c); c=$((c+1)); done
i=0; while [ $i -lt 100 ]; do taskset $((1<<(i%2))) true & i=$((i+1)); [ $((i%20)) = 0 ] && wait; done; wait; echo FORKED $i
mkfifo /tmp/forth /tmp/back
taskset 2 sh -c 'while read -r x; do echo $x; done' </tmp/forth >/tmp/back &
taskset 1 sh -c 'i=0; while [ $i -lt 50 ]; do echo $i >&3; read -r x <&4; [ "$x" = $i ] || echo BAD echo $x; i=$((i+1)); done' 3>/tmp/forth 4</tmp/back; wait; echo PONG
grep -E 'RES|CAL|TLB|LOC' /proc/interrupts
dmesg | grep -i -E 'tsc|unstable|stall|lockup|backtrace' && echo SEEN
poweroff -f`

// spanStint: an AMD processor reaches a guest's page tables as if it wrote them, and QEMU's forgets at every exit what it found there. So two processors
// of one guest need the same few pages of tables all the time, several at once; each gets them for so long in turn.
const spanStint = "400ms"

// TestUpSpan612 runs one Linux on servers of two cells: its processors in two processes, its memory and its interrupts between them.
func TestUpSpan612(t *testing.T) {
	long(t)
	if os.Getenv("CELLVISOR_BED_SPAN") == "" {
		t.Skip("a stock guest over several servers does not reach user space here yet: CELLVISOR_BED_SPAN=1 runs it")
	}
	c := startCluster(t, "--cells", "2", "--sched", "host", "--plain-pages")
	c.must(c.linuxArgs("wide", "6.12", spanScript, nil, "--vcpus", "2", "--span", "a,b", "--option", "window=3ms", "--option", "stint="+spanStint, "--option", "patience=16", "--cmdline", baseCmdline+" ignore_loglevel tsc=reliable nowatchdog")...)
	if os.Getenv("CELLVISOR_BED_ECHO") != "" {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		show := c.command(ctx, "", "vm", "console", "wide", "--attach", "--offset", "0", "--until", "THE END", "--timeout", clusterLimit.String())
		show.Stdout = os.Stdout
		if err := show.Start(); err != nil {
			t.Fatal(err)
		}
	}
	c.ended("wide", "CPUS 2 2 CLOCK tsc", strings.Replace(smpSum, "SUMS", "SUMS0", 1), strings.Replace(smpSum, "SUMS", "SUMS1", 1), "FORKED 100", "PONG")
	if out := c.must("vm", "show", "wide", "-o", "json"); !strings.Contains(out, `"exit_status": 0`) || !strings.Contains(out, `"state": "exited"`) {
		t.Errorf("it ended so:\n%s", out)
	}
	t.Log(c.console("wide"))
}
