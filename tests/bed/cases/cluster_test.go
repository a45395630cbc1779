package cases

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/local"
)

// cluster is a real one, of real processes, that a case talks to by the program's own commands.
type cluster struct {
	t        *testing.T
	bin, dir string
	files    string   // directory for what VMs are started from
	vms      []string // that the case started
}

// clusterLimit is how long a command may take that waits for a guest.
const clusterLimit = 8 * time.Minute

// startCluster returns the bed's cluster of cells a, b and c, which all cases of a run share (CELLVISOR_BED_LAB), or starts one for this case. The end
// of the case removes its VMs and disks.
func startCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	bedFile(t, "busybox") // skips where there is no bed
	c := &cluster{t: t, bin: os.Getenv("CELLVISOR_BIN"), dir: filepath.Join(t.TempDir(), "lab"), files: t.TempDir()}
	if c.bin == "" {
		c.bin = "cellvisor"
	}
	shared := os.Getenv("CELLVISOR_BED_LAB")
	if len(args) > 0 {
		shared = "" // it wants one of another shape
	}
	if c.dir = cmp.Or(shared, c.dir); shared == "" {
		c.must(append([]string{"up", "--detach", "--timeout", "3m", "--slow", "16", "--memory", "600MiB"}, args...)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
		if shared == "" {
			c.must("down")
			return
		}
		for _, name := range c.vms {
			c.must("vm", "rm", "--force", name)
		}
	})
	return c
}

// command prepares a command; input may be empty.
func (c *cluster) command(ctx context.Context, input string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "CELLVISOR_DIR="+c.dir, "CELLVISOR_ADDR=")
	cmd.Stdin = strings.NewReader(input)
	return cmd
}

// try runs a command and returns what it printed, and its exit code.
func (c *cluster) try(args ...string) (out, errs string, code int) {
	return c.tryInput("", args...)
}

func (c *cluster) tryInput(input string, args ...string) (out, errs string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterLimit)
	defer cancel()
	cmd := c.command(ctx, input, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		c.t.Errorf("cellvisor %s: %v", strings.Join(args, " "), errors.Join(err, ctx.Err()))
		return stdout.String(), stderr.String(), -1
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	start := time.Now()
	out, errs, code := c.try(args...)
	for code != 0 && readsOnly(args) && strings.Contains(errs, "no server of the cluster answers") && time.Since(start) < clusterLimit {
		out, errs, code = c.try(args...) // the host is busy, and its emulated machine stands still for seconds
	}
	if code != 0 {
		c.t.Errorf("cellvisor %s: exit code %d after %s\n%s%s", strings.Join(args, " "), code, since(start), out, errs)
	}
	return out
}

// readsOnly tells whether a command changes nothing.
func readsOnly(args []string) bool {
	switch args[0] {
	case "status", "events":
		return true
	case "vm", "op":
		return len(args) > 1 && (args[1] == "show" || args[1] == "ls" || args[1] == "wait" || args[1] == "console" && slices.Contains(args, "--print"))
	}
	return false
}

// explain prints what may tell why a case failed.
func (c *cluster) explain() {
	for _, args := range [][]string{{"vm", "ls", "-o", "wide"}, {"events"}} {
		out, errs, _ := c.try(args...)
		c.t.Logf("%s:\n%s%s", strings.Join(args, " "), out, errs)
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*", "workers", "*", "worker.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		c.t.Logf("%s:\n%s", path, tail(string(text), 4000))
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// file writes a file that a VM is started from.
func (c *cluster) file(name string, data []byte) string {
	c.t.Helper()
	path := filepath.Join(c.files, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// disk makes a raw image.
func (c *cluster) disk(name string, size int64) string {
	c.t.Helper()
	path := c.file(name, nil)
	if err := os.Truncate(path, size); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// linuxArgs is the command that runs a Linux guest with a script for its init.
func (c *cluster) linuxArgs(name, version, script string, modules []string, args ...string) []string {
	c.t.Helper()
	ramdisk := c.file(name+".initrd", initrd(c.t, version, script, modules...))
	c.vms = append(c.vms, name)
	kernel := filepath.Join(os.Getenv("CELLVISOR_BED"), "vmlinuz-"+version) // small: it is sent to the cluster, and from server to server
	return append([]string{"vm", "run", name, "--kernel", kernel, "--initrd", ramdisk, "--cmdline", baseCmdline, "--cpu", "x86-64-v2", "--memory", "256MiB"}, args...)
}

// console returns what a guest printed so far.
func (c *cluster) console(name string) string { return c.must("vm", "console", name, "--print") }

// ended waits for a VM's end, which must be of its guest's own will and with status 0, and checks what it printed.
func (c *cluster) ended(name string, want ...string) {
	c.t.Helper()
	c.must("vm", "wait", name, "--timeout", clusterLimit.String())
	all := c.console(name)
	for _, text := range want {
		if !strings.Contains(all, text) {
			c.t.Fatalf("%s did not print %q; it printed:\n%s", name, text, all)
		}
	}
	if i := strings.Index(all, "BAD "); i >= 0 {
		line, _, _ := strings.Cut(all[i:], "\n")
		c.t.Fatalf("%s says: %s\nall it printed:\n%s", name, line, all)
	}
}

// allFork forks a thousand processes, wherever the kernel wants them; eachForks has the CPUs do it one after the other, which then keep what they need.
const allFork = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); if [ $((i%10)) = 0 ]; then /bin/busybox true & else (exit 0) & fi; [ $((i%50)) = 0 ] && wait; done; wait"

func eachForks(vcpus int) string {
	return fmt.Sprintf("taskset -p 1 $$ >/dev/null; n=0; for c in $(seq 0 %d); do taskset $((1<<c)) sh -c '%s; echo $i >/tmp/forked'; read -r i </tmp/forked; n=$((n+i)); done; i=$n",
		vcpus-1, strings.Replace(allFork, "1000", fmt.Sprint(1000/vcpus), 1))
}

// userScript does what a user's machine does: it forks a thousand processes, computes with checksums on all CPUs, writes and verifies 64 MiB on
// ext4 on its disk, and switches itself off. It says when it was how far.
func userScript(vcpus int, forks string) string {
	return fmt.Sprintf(`
at() { read -r up idle </proc/uptime; echo AT $up $*; }
at init; [ $(nproc) = %[1]d ] || echo BAD cpus $(nproc)
%[2]s
echo FORKED $i; at forked
c=0; while [ $c -lt %[1]d ]; do
  taskset $((1<<c)) sh -c 'dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum' >/tmp/sum$c & c=$((c+1))
done; wait
c=0; while [ $c -lt %[1]d ]; do echo SUMS$c $(cat /tmp/sum$c); c=$((c+1)); done; at summed
mke2fs -F /dev/vda >/dev/null 2>&1 || echo BAD mke2fs
mount -t ext4 /dev/vda /mnt || echo BAD mount
at mounted; dd if=/dev/urandom of=/tmp/seed bs=1M count=4 2>/dev/null
i=0; while [ $i -lt 16 ]; do echo part $i; tail -c +9 /tmp/seed; i=$((i+1)); done >/mnt/a || echo BAD write
umount /mnt; at written; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt || echo BAD remount
i=0; while [ $i -lt 16 ]; do echo part $i; tail -c +9 /tmp/seed; i=$((i+1)); done | md5sum >/tmp/sum; at computed
[ "$(md5sum </mnt/a)" = "$(cat /tmp/sum)" ] && echo SAME $(stat -c %%s /mnt/a); at verified
umount /mnt
poweroff -f`, vcpus, forks)
}

// smallDiskScript writes files on a disk, and verifies them when nothing of them is in memory.
const smallDiskScript = `mke2fs -F /dev/vda >/dev/null 2>&1 || echo BAD mke2fs
mount -t ext4 /dev/vda /mnt || echo BAD mount
dd if=/dev/urandom of=/tmp/a bs=1M count=2 2>/dev/null; cp /tmp/a /mnt/a || echo BAD write
umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt || echo BAD remount
cmp /tmp/a /mnt/a && echo SAME
umount /mnt
`

// TestUpShort612 is what every change is tested with: a cluster starts, a stock kernel boots on it, forks, uses its disk and switches itself off.
func TestUpShort612(t *testing.T) {
	start := time.Now()
	c := startCluster(t)
	c.must(c.linuxArgs("short", "6.12", `
i=0; while [ $i -lt 50 ]; do i=$((i+1)); /bin/busybox true & [ $((i%10)) = 0 ] && wait; done; wait; echo FORKED $i
`+smallDiskScript+`poweroff -f`, []string{"virtio_blk"}, "--disk", c.disk("short", 16<<20), "--span", "b")...)
	t.Logf("it begins after %s", since(start))
	c.ended("short", "FORKED 50", "SAME")
	c.exitedWell("short")
	t.Logf("done in %s", since(start))
}

// exitedWell checks that a VM ended by its guest's own will and with status 0.
func (c *cluster) exitedWell(name string) {
	c.t.Helper()
	if out := c.must("vm", "show", name, "-o", "json"); !strings.Contains(out, `"exit_status": 0`) || !strings.Contains(out, `"state": "exited"`) {
		c.t.Errorf("it ended so:\n%s", out)
	}
}

// upCase boots a kernel on a cell of a cluster, and has it do all of that.
func upCase(t *testing.T, version string, vcpus int, cell string) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	name := fmt.Sprintf("debian-%s-%d", strings.ReplaceAll(version, ".", "-"), vcpus)
	disk := c.disk("data-"+name, 96<<20)
	c.must(c.linuxArgs(name, version, userScript(vcpus, allFork), []string{"virtio_blk"}, "--vcpus", fmt.Sprint(vcpus), "--disk", disk, "--span", cell)...)
	t.Logf("it begins after %s", since(start))
	want := []string{"FORKED 1000", "SAME 67108"}
	for i := range vcpus {
		want = append(want, strings.Replace(smpSum, "SUMS", fmt.Sprintf("SUMS%d", i), 1))
	}
	c.ended(name, want...)
	c.exitedWell(name)
	t.Logf("done in %s; by the guest's clock:\n%s", since(start), strings.Join(atLine.FindAllString(c.console(name), -1), "\n"))
}

var atLine = regexp.MustCompile(`AT \d.*`)

func TestUpOne612(t *testing.T) { upCase(t, "6.12", 1, "a") }

func TestUpOne61(t *testing.T) { upCase(t, "6.1", 1, "b") }

func TestUpTwo612(t *testing.T) { upCase(t, "6.12", 2, "a") }

func TestUpTwo61(t *testing.T) { upCase(t, "6.1", 2, "b") }

// TestUpLives612 resets a machine in all the ways there are; each time it comes back in place, with its disk, of which it reads almost nothing again.
func TestUpLives612(t *testing.T) {
	long(t)
	c := startCluster(t)
	disk := c.disk("state", 9<<20)
	before := c.counters("c-1")
	c.must(c.linuxArgs("phoenix", "6.12", `
n=$(dd if=/dev/vda bs=4k count=1 2>/dev/null | head -c 1 | tr -d '\0'); n=$((n+1))
printf $n | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
dd if=/dev/vda of=/dev/null bs=64k skip=16 2>/dev/null
echo LIFE $n
echo 1 >/proc/sys/kernel/sysrq
case $n in
1) reboot -f;;
2) echo c >/proc/sysrq-trigger;;
3) echo t >/sys/kernel/reboot/type; reboot -f;;
esac
read -r line </dev/ttyS0; echo "GOT $line"
poweroff -f`, []string{"virtio_blk"}, "--disk", disk, "--span", "c")...)
	c.must("vm", "console", "phoenix", "--attach", "--offset", "0", "--until", "LIFE 4", "--timeout", clusterLimit.String())
	read, cached := c.diskBytes("c-1", before, 32<<20) // while its worker lives
	t.Logf("four lives: %d KiB read from the disk, %d KiB from what memory was known to hold", read>>10, cached>>10)
	if read > 12<<20 || cached < 20<<20 {
		t.Error("want the disk's 8 MiB read once, and from memory three times")
	}
	out, errs, code := c.tryInput("typed words\n", "vm", "console", "phoenix", "--attach", "--offset", "0", "--until", "GOT typed words", "--timeout", clusterLimit.String())
	if code != 0 {
		t.Errorf("console: exit code %d\n%s%s", code, out, errs)
	}
	c.ended("phoenix", "LIFE 1", "LIFE 2", "LIFE 3", "LIFE 4", "GOT typed words")
}

// diskBytes waits until a server's VMs have got as many bytes of their disks as they must have by then, or for a minute, and returns how many of them were
// read from the disks and how many taken from memory.
func (c *cluster) diskBytes(server string, before map[string]uint64, all uint64) (read, cached uint64) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		now := c.counters(server)
		read, cached = now["disks.read_bytes"]-before["disks.read_bytes"], now["disks.cached_bytes"]-before["disks.cached_bytes"]
		if read+cached >= all || time.Now().After(deadline) {
			return read, cached
		}
		<-time.After(500 * time.Millisecond)
	}
}

// counters are a server's.
func (c *cluster) counters(server string) map[string]uint64 {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterLimit)
	defer cancel()
	all, err := local.Load(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	one, err := api.Dial(ctx, all.Server(server).API)
	if err != nil {
		c.t.Fatal(err)
	}
	defer one.Close()
	var counters map[string]uint64
	err = one.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.DebugCounters(ctx, &api.DebugCountersRequest{})
		counters = r.GetCounters()
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return counters
}
