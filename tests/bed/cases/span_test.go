package cases

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/local"
)

// spanScript computes on the processor that a machine starts with.
const spanScript = `
echo CPUS $(nproc) of $(cat /sys/devices/system/cpu/present) CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
sum() { dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum; }
echo SUMS0 $(sum)
i=0; while [ $i -lt 50 ]; do (exit 0) & i=$((i+1)); [ $((i%10)) = 0 ] && wait; done; wait; echo FORKED $i
`

// bothScript forks, verifies files on a disk, then brings the other processor online, on another server, and computes on both.
const bothScript = forkAndDisk + `at alone; echo 1 >/sys/devices/system/cpu/cpu1/online; echo ONLINE $(nproc); at online
` + computeScript

// forkAndDisk forks, and verifies files on a disk.
const forkAndDisk = `at() { read -r up idle </proc/uptime; echo AT $up $*; }
i=0; while [ $i -lt 50 ]; do (exit 0) & i=$((i+1)); [ $((i%10)) = 0 ] && wait; done; wait; echo FORKED $i
` + smallDiskScript + `dd if=/dev/zero of=/tmp/zeros bs=1 count=0 seek=8M 2>/dev/null
`

// computeScript computes on both processors. What they compute of has no pages of its own, so it is the kernel's and the program's that travel. It shows what
// interrupts they took.
const computeScript = `
for c in 0 1; do taskset $((1<<c)) sha256sum </tmp/zeros >/tmp/sum$c & done; wait
for c in 0 1; do read -r sum rest </tmp/sum$c; echo SUMS$c $sum; done; at summed
while read -r line; do case $line in LOC*|RES*|CAL*|TLB*) echo $line;; esac; done </proc/interrupts
poweroff -f`

// spanStint: an AMD processor reaches a guest's page tables as if it wrote them, and QEMU's forgets at every exit what it found there. So two processors
// of one guest need the same few pages of tables all the time, several at once; each gets them for so long in turn.
const spanStint = "400ms"

// TestUpSpan612 runs one Linux on servers of two cells: its processors in two processes, its memory and its interrupts between them. It starts with one
// of them, on the first server, and leaves the other alone.
func TestUpSpan612(t *testing.T) {
	long(t)
	want := []string{"CPUS 1 of 0-1 CLOCK tsc", strings.Replace(smpSum, "SUMS", "SUMS0", 1), "FORKED 50"}
	c := startCluster(t, "--cells", "2", "--sched", "host", "--plain-pages")
	c.must(c.linuxArgs("wide", "6.12", spanScript+"poweroff -f", nil, "--vcpus", "2", "--span", "a,b",
		"--option", "window=3ms", "--option", "stint="+spanStint, "--option", "patience=16",
		"--cmdline", baseCmdline+" tsc=reliable nowatchdog maxcpus=1 noreplace-smp transparent_hugepage=never")...)
	c.ended("wide", want...)
	c.exitedWell("wide")
	t.Log(c.console("wide"))
}

// spread starts one Linux on two servers of different cells, a processor on each, with some disk. The bed runs it in an outer machine whose time passes by
// instructions, so all is fast by that machine's clock. words
// are added to the kernel's command line.
func spread(t *testing.T, cells, version, script string, diskBytes int64, words ...string) *cluster {
	c := startCluster(t, "--cells", cells, "--sched", "host", "--plain-pages", "--slow", "4")
	c.must(c.linuxArgs("both", version, script, []string{"virtio_blk"}, "--vcpus", "2", "--span", "a,b", "--disk", c.disk("both", diskBytes),
		"--option", "window=200us", "--option", "stint=10ms", "--option", "patience=4",
		"--cmdline", baseCmdline+" tsc=reliable nowatchdog noreplace-smp transparent_hugepage=never apparmor=0 audit=0 cryptomgr.notests init_on_alloc=0 8250.nr_uarts=1 "+strings.Join(words, " "))...)
	c.watch("both")
	return c
}

func bothCase(t *testing.T, version string) {
	long(t)
	c := spread(t, "2", version, bothScript, 16<<20, oneFirst)
	c.ended("both", "FORKED 50", "SAME", "ONLINE 2", strings.Replace(smpSum, "SUMS", "SUMS0", 1), strings.Replace(smpSum, "SUMS", "SUMS1", 1))
	c.exitedWell("both")
	t.Log(c.console("both"))
}

// TestSpanBoth612 and the others below are not among the usual cases: they take long.
func TestSpanBoth612(t *testing.T) { bothCase(t, "6.12") }

func TestSpanBoth61(t *testing.T) { bothCase(t, "6.1") }

// oneFirst has the kernel start one processor, and leave the other for the script.
const oneFirst = "maxcpus=1"

const secondOnline = "echo 1 >/sys/devices/system/cpu/cpu1/online\n"

// TestSpanStart612 has the kernel start both processors while it boots.
func TestSpanStart612(t *testing.T) {
	long(t)
	c := spread(t, "2", "6.12", "at() { read -r up idle </proc/uptime; echo AT $up $*; }\nat init; echo ONLINE $(nproc)\n"+forkAndDisk+computeScript, 16<<20)
	c.ended("both", "FORKED 50", "SAME", "ONLINE 2", strings.Replace(smpSum, "SUMS", "SUMS0", 1), strings.Replace(smpSum, "SUMS", "SUMS1", 1))
	c.exitedWell("both")
	t.Log(c.console("both"))
}

// userCase has a machine on two servers do all that one on one server does, with both processors.
func userCase(t *testing.T, version string) {
	long(t)
	c := spread(t, "2", version, secondOnline+userScript(2, eachForks(2)), 96<<20, oneFirst)
	c.ended("both", "FORKED 1000", "SAME 67108", strings.Replace(smpSum, "SUMS", "SUMS0", 1), strings.Replace(smpSum, "SUMS", "SUMS1", 1))
	c.exitedWell("both")
	t.Logf("by the guest's clock:\n%s", strings.Join(atLine.FindAllString(c.console("both"), -1), "\n"))
}

func TestSpanUser612(t *testing.T) { userCase(t, "6.12") }

func TestSpanUser61(t *testing.T) { userCase(t, "6.1") }

// TestSpanMemory612 has both processors walk the same memory and play ping-pong over futexes and pipes, for CELLVISOR_BED_WALK seconds by the guest's clock (1
// if that is not set, which takes minutes). Meanwhile a cell that the machine does not depend on is killed, which it does not notice; then one that it does
// depend on, which ends it.
func TestSpanMemory612(t *testing.T) {
	long(t)
	seconds := os.Getenv("CELLVISOR_BED_WALK")
	if seconds == "" {
		seconds = "1"
	}
	c := spread(t, "5", "6.12", secondOnline+"echo WALKS; GOGC=off walker "+seconds+" || echo BAD walk; echo WALK ENDED; while :; do sleep 1; done", 1<<20, oneFirst)
	c.attached("both", "WALKS")
	c.loses("c")
	c.until(`"servers_live": 4`, "status", "-o", "json")
	c.attached("both", "WALK ENDED")
	all := c.console("both")
	if !strings.Contains(all, "WALKED ") || strings.Contains(all, "BAD ") {
		t.Errorf("it printed:\n%s", all)
	}
	c.loses("b")
	c.until(`"state": "lost"`, "vm", "show", "both", "-o", "json")
	t.Log(all)
}

// spreadScript computes on both processors, each time that somebody types a line.
const spreadScript = `dd if=/dev/zero of=/tmp/zeros bs=1 count=0 seek=8M 2>/dev/null
i=0; while [ $i -lt 3 ]; do
echo READY$i $(nproc); read -r line
for c in 0 1; do taskset $((1<<c)) sha256sum </tmp/zeros >/tmp/sum$c & done; wait
for c in 0 1; do read -r sum rest </tmp/sum$c; echo ROUND$i SUMS$c $sum; done
i=$((i+1)); done
poweroff -f`

// gathered starts one Linux over two servers of different cells, with both processors on the first, and waits until it is in user space.
func gathered(t *testing.T, cells, version string) *cluster {
	c := startCluster(t, "--cells", cells, "--sched", "host", "--plain-pages", "--slow", "4")
	c.must(c.linuxArgs("both", version, spreadScript, nil, "--vcpus", "2", "--span", "a,b",
		"--option", "window=200us", "--option", "stint=10ms", "--option", "patience=4",
		"--cmdline", baseCmdline+" tsc=reliable nowatchdog noreplace-smp transparent_hugepage=never apparmor=0 audit=0 cryptomgr.notests init_on_alloc=0 8250.nr_uarts=1")...)
	c.watch("both")
	c.must("vm", "gather", "both", "--to", "a")
	c.attached("both", "READY0 2")
	return c
}

// goesOn has the machine compute once more.
func (c *cluster) goesOn(round int) {
	c.t.Helper()
	out, errs, code := c.tryInput("go on\n", "vm", "console", "both", "--attach", "--offset", "0", "--until", "ROUND"+strconv.Itoa(round)+" SUMS1", "--timeout", clusterLimit.String())
	if code != 0 {
		c.t.Fatalf("round %d: %d: %s\n%s", round, code, out, errs)
	}
}

// spreadCase has a machine boot with both processors on one server, runs them on two, brings them back together, and takes them apart again.
func spreadCase(t *testing.T, version string) {
	long(t)
	c := gathered(t, "2", version)
	for i, where := range [][]string{{"vm", "spread", "both"}, {"vm", "gather", "both", "--to", "a"}, {"vm", "spread", "both"}} {
		c.must(where...)
		c.goesOn(i)
	}
	sum := strings.TrimPrefix(smpSum, "SUMS ")
	c.ended("both", "ROUND0 SUMS0 "+sum, "ROUND0 SUMS1 "+sum, "ROUND1 SUMS0 "+sum, "ROUND1 SUMS1 "+sum, "ROUND2 SUMS0 "+sum, "ROUND2 SUMS1 "+sum)
	c.exitedWell("both")
	t.Log(c.console("both"))
}

// TestSpanLoss612 has such a machine lose a cell that it has nothing in, which it does not notice, and then one that it has.
func TestSpanLoss612(t *testing.T) {
	long(t)
	c := gathered(t, "5", "6.12")
	c.must("vm", "spread", "both")
	c.goesOn(0)
	c.loses("e")
	c.until(`"servers_live": 4`, "status", "-o", "json")
	c.goesOn(1)
	c.loses("b")
	c.until(`"state": "lost"`, "vm", "show", "both", "-o", "json")
	t.Log(c.console("both"))
}

func TestSpanSpread612(t *testing.T) { spreadCase(t, "6.12") }

func TestSpanSpread61(t *testing.T) { spreadCase(t, "6.1") }

// attached waits until a machine has printed a text.
func (c *cluster) attached(name, text string) {
	c.t.Helper()
	c.must("vm", "console", name, "--attach", "--offset", "0", "--until", text, "--timeout", clusterLimit.String())
}

// loses kills all of a cell.
func (c *cluster) loses(cell string) {
	c.t.Helper()
	if _, _, err := local.KillCell(c.dir, cell); err != nil {
		c.t.Fatal(err)
	}
}

// watch shows a machine's console as it comes, if CELLVISOR_BED_ECHO is set.
func (c *cluster) watch(name string) {
	if os.Getenv("CELLVISOR_BED_ECHO") == "" {
		return
	}
	cmd := c.command(context.Background(), "", "vm", "console", name, "--attach", "--offset", "0", "--timeout", "2h")
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		c.t.Error(err)
		return
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
