package cases

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/local"
)

var netModules = []string{"failover", "net_failover", "virtio_net"}

// cardScript sets up a guest's network card.
func cardScript(addr string) string {
	return fmt.Sprintf(`
ip link set lo up; ip link set eth0 up; ip addr add %s/24 dev eth0 || echo BAD card
mkfifo /tmp/quiet; sleep 9999 >/tmp/quiet & # nc ends what it sends when its input does, and the other side all then
`, addr)
}

// TestUpNet612 has two machines on servers of different cells talk TCP over the built-in switch; what arrives must be what was sent.
func TestUpNet612(t *testing.T) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	c.must(c.linuxArgs("listener", "6.12", cardScript("10.0.0.1")+`
echo UP; nc -l -p 4000 >/tmp/got </tmp/quiet; echo GOT $(stat -c %s /tmp/got) $(md5sum </tmp/got)
poweroff -f`, netModules, "--span", "a", "--net", "switch=lan")...)
	c.must(c.linuxArgs("talker", "6.12", cardScript("10.0.0.2")+`
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
i=0; until ping -c 1 -W 2 10.0.0.1 >/dev/null; do i=$((i+1)); [ $i -lt 90 ] || break; done
nc 10.0.0.1 4000 </tmp/data; echo SENT $(stat -c %s /tmp/data) $(md5sum </tmp/data)
poweroff -f`, netModules, "--span", "b", "--net", "switch=lan")...)
	c.ended("talker", "SENT 4194304 ")
	c.ended("listener", "GOT 4194304 ")
	word := func(all, mark string) string {
		_, rest, _ := strings.Cut(all, mark+" ")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	if sent, got := word(c.console("talker"), "SENT"), word(c.console("listener"), "GOT"); sent != got {
		t.Errorf("sent %q, got %q", sent, got)
	}
	t.Logf("done in %s", since(start))
}

// moves is how often TestUpMove612 moves its machine.
const moves = 10

// gapScript receives numbered lines, checks that none is missing, and prints each wait of three tenths of a second or more between two, in hundredths.
const gapScript = `
echo UP; want=1; last=
nc -l -p 4000 </tmp/quiet | { while read -r n rest; do
  read -r up idle </proc/uptime; now=${up%.*}${up#*.}
  [ "$n" = $want ] || { echo BAD line $n not $want; break; }
  want=$((want+1)); [ "$rest" = "some words that are always the same" ] || echo BAD words $rest
  [ -z "$last" ] || [ $((now-last)) -lt 30 ] || echo GAP $((now-last)) before $n
  last=$now
done; echo LINES $((want-1)); }
poweroff -f`

const talkScript = `
dd if=/dev/urandom of=/tmp/d bs=64k count=8 2>/dev/null; dd if=/tmp/d of=/dev/vda bs=64k conv=fsync 2>/dev/null || echo BAD disk
i=0; until ping -c 1 -W 2 10.0.0.1 >/dev/null; do i=$((i+1)); [ $i -lt 90 ] || break; done
(read -r line </dev/ttyS0; touch /tmp/stop) &
n=0; until [ -e /tmp/stop ]; do n=$((n+1)); echo $n some words that are always the same; [ $n != 20 ] || echo TALKS >/dev/ttyS0; sleep 0.1; done | nc 10.0.0.1 4000
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=8 2>/dev/null | cmp -s - /tmp/d && echo SAME; echo TALKED
poweroff -f`

// TestUpMove612 moves a machine with its disk live between cells, again and again, while it talks TCP to another: no line is lost. The longest wait of the other
// side is told, beside that of the same machine's pause and resume at rest.
func TestUpMove612(t *testing.T) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	c.must(c.linuxArgs("listener", "6.12", cardScript("10.0.0.1")+gapScript, netModules, "--span", "a", "--net", "switch=lan", "--memory", "128MiB")...)
	c.must(c.linuxArgs("mover", "6.12", cardScript("10.0.0.2")+talkScript, append([]string{"virtio_blk"}, netModules...),
		"--span", "b", "--net", "switch=lan", "--memory", "128MiB", "--disk", c.disk("mover", 1<<20))...)
	c.must("vm", "console", "mover", "--attach", "--offset", "0", "--until", "TALKS", "--timeout", clusterLimit.String())
	t.Logf("they talk after %s", since(start))
	quiet := len(c.console("listener"))
	for range 3 {
		c.must("vm", "pause", "mover")
		c.must("vm", "resume", "mover")
	}
	rested := len(c.console("listener"))
	count := moves
	if n, err := strconv.Atoi(os.Getenv("CELLVISOR_BED_MOVES")); err == nil {
		count = n
	}
	for i := range count {
		began, before := time.Now(), len(c.console("listener"))
		c.must("vm", "migrate", "mover", "--to", []string{"c", "b"}[i%2])
		took, all := since(began), c.console("listener")
		t.Logf("move %d took %s; the other side has waited for %d ms", i+1, took, longestGap(all[min(before, len(all)):]))
	}
	moved := len(c.console("listener"))
	out, errs, code := c.tryInput("stop\n", "vm", "console", "mover", "--attach", "--until", "TALKED", "--timeout", clusterLimit.String())
	if code != 0 {
		t.Errorf("the machine that was moved does not end: %d\n%s%s", code, out, errs)
	}
	c.ended("mover", "SAME", "TALKED")
	c.ended("listener", "LINES ")
	all := c.console("listener")
	if len(all) < moved {
		t.Fatal("the console has become shorter")
	}
	t.Logf("longest wait: %d ms at rest before, %d ms over three pauses, %d ms over %d moves; what the cluster says:\n%s",
		longestGap(all[:quiet]), longestGap(all[quiet:rested]), longestGap(all[rested:moved]), count, c.must("op", "ls"))
	t.Logf("done in %s", since(start))
}

var gapLine = regexp.MustCompile(`GAP (\d+) `)

// longestGap is in milliseconds, to a hundredth of a second; 0 if all were shorter than three tenths of one.
func longestGap(text string) (longest int) {
	for _, m := range gapLine.FindAllStringSubmatch(text, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil {
			longest = max(longest, n*10)
		}
	}
	return longest
}

// TestUpBalloon612 has a machine use memory and free it again: what it reports free goes back to its server.
func TestUpBalloon612(t *testing.T) {
	long(t)
	c := startCluster(t)
	c.must(c.linuxArgs("giver", "6.12", `
dd if=/dev/zero bs=1M count=96 2>/dev/null | tr '\0' x >/tmp/big; echo FULL; read -r line </dev/ttyS0
rm /tmp/big; echo FREED; read -r line </dev/ttyS0; echo AWAKE
poweroff -f`, []string{"virtio_balloon"}, "--option", "balloon=on")...)
	resident := func() (mib int) {
		m := regexp.MustCompile(`"resident_bytes": (\d+)`).FindStringSubmatch(c.must("vm", "show", "giver", "-o", "json"))
		if m == nil {
			return 0
		}
		n, _ := strconv.Atoi(m[1])
		return n >> 20
	}
	await := func(what string, ok func(mib int) bool) {
		t.Helper()
		for deadline := time.Now().Add(clusterLimit); !ok(resident()); {
			if time.Now().After(deadline) {
				t.Fatalf("it never holds %s: %d MiB", what, resident())
			}
		}
	}
	c.must("vm", "console", "giver", "--attach", "--offset", "0", "--until", "FULL", "--timeout", clusterLimit.String())
	await("its file", func(mib int) bool { return mib > 96 })
	full := resident()
	out, errs, code := c.tryInput("go on\n", "vm", "console", "giver", "--attach", "--until", "FREED", "--timeout", clusterLimit.String())
	if code != 0 {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	await("less", func(mib int) bool { return mib < full-64 })
	t.Logf("it held %d MiB, and %d after it freed its file", full, resident())
	out, errs, code = c.tryInput("go on\n", "vm", "console", "giver", "--attach", "--until", "AWAKE", "--timeout", clusterLimit.String())
	if code != 0 {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	c.ended("giver", "AWAKE")
}

// TestUpSave612 kills a cell that a machine does not depend on, saves the machine, takes the cluster down and up, and has the machine go on: with its
// memory, its disk, and what it was doing.
func TestUpSave612(t *testing.T) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	disk := c.disk("kept", 1<<20)
	c.must(c.linuxArgs("sleeper", "6.12", `
dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; sum=$(md5sum </tmp/a)
dd if=/tmp/a of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null
(while read -r line; do echo GOT $line; [ "$line" != stop ] || touch /tmp/stop; done </dev/ttyS0) &
n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); [ $n != 5 ] || echo COUNTS; sleep 0.1; done
[ $n -gt 5 ] || echo BAD count $n
[ "$sum" = "$(md5sum </tmp/a)" ] && dd if=/dev/vda bs=64k count=8 2>/dev/null | cmp -n 524288 - /tmp/a && echo SAME
poweroff -f`, []string{"virtio_blk"}, "--disk", disk, "--memory", "128MiB", "--span", "a")...)
	c.must("vm", "console", "sleeper", "--attach", "--offset", "0", "--until", "COUNTS", "--timeout", clusterLimit.String())
	t.Logf("it runs after %s", since(start))
	killed, _, err := local.KillCell(c.dir, "c")
	if err != nil {
		t.Fatal(err)
	}
	c.until(`"servers_live": 2`, "status", "-o", "json")
	c.typed("sleeper", "cell c is gone")
	t.Logf("killed %d processes of cell c; the machine answers after %s", len(killed), since(start))
	file := filepath.Join(c.files, "sleeper.saved")
	t.Logf("saved: %s", strings.TrimSpace(c.must("vm", "save", "sleeper", file)))
	c.must("down")
	c.must("up", "--detach", "--timeout", "3m")
	t.Logf("down and up after %s", since(start))
	c.must("vm", "rm", "sleeper")
	c.must("vm", "restore", "sleeper", file)
	c.typed("sleeper", "stop")
	c.ended("sleeper", "COUNTS", "GOT cell c is gone", "SAME")
	t.Logf("done in %s", since(start))
}

// TestUpProtect612 kills the home of a protected machine: it goes on from its replica with its memory, its disk and what it was doing, and what it had printed
// stays printed.
func TestUpProtect612(t *testing.T) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	c.must(c.linuxArgs("guarded", "6.12", `
dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; sum=$(md5sum </tmp/a)
dd if=/tmp/a of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null
(while read -r line; do echo GOT $line; [ "$line" != stop ] || touch /tmp/stop; done </dev/ttyS0) &
(last=0; while [ ! -e /tmp/stop ]; do read -r now rest </proc/uptime; now=${now%.*}${now#*.}; [ $now -ge $last ] || echo BAD clock $now $last; last=$now; sleep 0.1; done) &
taskset -p 2 $! >/dev/null; echo RUNS; n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo N $n; sleep 0.3; done
[ "$sum" = "$(md5sum </tmp/a)" ] && dd if=/dev/vda bs=64k count=8 2>/dev/null | cmp -n 524288 - /tmp/a && echo SAME
poweroff -f`, []string{"virtio_blk"}, "--disk", c.disk("guarded", 1<<20), "--vcpus", "2", "--memory", "128MiB", "--span", "a", "--protect", "replica", "--checkpoint", "1s")...)
	c.must("vm", "console", "guarded", "--attach", "--offset", "0", "--until", "RUNS", "--timeout", clusterLimit.String())
	t.Logf("it runs after %s", since(start))
	c.until(`"protection": "safe"`, "vm", "show", "guarded", "-o", "json")
	c.typed("guarded", "before")
	t.Logf("it is protected, and answers, after %s", since(start))
	killed, _, err := local.KillCell(c.dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.until(`"servers_live": 3`, "status", "-o", "json")
	defer c.must("server", "start", "a-1")
	c.until(`"recoveries": 1`, "vm", "show", "guarded", "-o", "json")
	t.Logf("killed %d processes of cell a; the machine goes on elsewhere after %s", len(killed), since(start))
	c.typed("guarded", "after")
	t.Logf("it answers after %s", since(start))
	c.typed("guarded", "stop")
	c.ended("guarded", "GOT before", "GOT after", "SAME")
	count := 0
	for _, m := range countLine.FindAllStringSubmatch(c.console("guarded"), -1) {
		if count++; m[1] != strconv.Itoa(count) {
			t.Fatalf("line %d says N %s", count, m[1])
		}
	}
	t.Logf("%d lines without a gap; done in %s", count, since(start))
}

var countLine = regexp.MustCompile(`(?m)^N (\d+)\r?$`)

// typed types a line on a machine's console, whose guest answers that it got it.
func (c *cluster) typed(name, line string) {
	c.t.Helper()
	out, errs, code := c.tryInput(line+"\n", "vm", "console", name, "--attach", "--until", "GOT "+line, "--timeout", clusterLimit.String())
	if code != 0 {
		c.t.Errorf("%s does not answer: %d\n%s%s", name, code, out, errs)
	}
}

// until repeats a command until it prints a text.
func (c *cluster) until(text string, args ...string) {
	c.t.Helper()
	for deadline := time.Now().Add(clusterLimit); ; {
		out := c.must(args...)
		if strings.Contains(out, text) {
			return
		}
		if c.t.Failed() {
			c.t.FailNow() // it need not wait for what cannot come
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("cellvisor %s never printed %s, but\n%s", strings.Join(args, " "), text, out)
		}
	}
}
