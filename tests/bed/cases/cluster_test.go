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
	"strings"
	"testing"
	"time"
)

// cluster is a real one, of real processes, that a case talks to by the program's own commands.
type cluster struct {
	t        *testing.T
	bin, dir string
	files    string // directory for what VMs are started from
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
		c.removeAll("vm", "rm", "--force")
		c.removeAll("disk", "rm")
	})
	return c
}

// removeAll removes all things of a kind.
func (c *cluster) removeAll(rm ...string) {
	for _, name := range strings.Fields(c.must(rm[0], "ls", "-o", "name")) {
		c.must(append(rm, name)...)
	}
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
	if code != 0 {
		c.t.Errorf("cellvisor %s: exit code %d after %s\n%s%s", strings.Join(args, " "), code, since(start), out, errs)
	}
	return out
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

// userScript does what a user's machine does: it forks a thousand processes, computes with checksums on all CPUs, writes and verifies 64 MiB on
// ext4 on its disk, and switches itself off.
func userScript(vcpus int) string {
	return fmt.Sprintf(`
[ $(nproc) = %d ] || echo BAD cpus $(nproc)
i=0; while [ $i -lt 1000 ]; do /bin/busybox true & i=$((i+1)); [ $((i%%50)) = 0 ] && wait; done; wait; echo FORKED $i
c=0; while [ $c -lt %d ]; do
  taskset $((1<<c)) sh -c 'dd if=/dev/zero bs=256k count=32 2>/dev/null | sha256sum' >/tmp/sum$c & c=$((c+1))
done; wait
c=0; while [ $c -lt %d ]; do echo SUMS$c $(cat /tmp/sum$c); c=$((c+1)); done
mke2fs -F /dev/vda >/dev/null 2>&1 || echo BAD mke2fs
mount -t ext4 /dev/vda /mnt || echo BAD mount
dd if=/dev/urandom of=/tmp/seed bs=1M count=4 2>/dev/null
i=0; while [ $i -lt 16 ]; do cat /tmp/seed; i=$((i+1)); done >/mnt/a || echo BAD write
umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt || echo BAD remount
i=0; while [ $i -lt 16 ]; do cat /tmp/seed; i=$((i+1)); done | cmp - /mnt/a && echo SAME $(stat -c %%s /mnt/a)
umount /mnt
poweroff -f`, vcpus, vcpus, vcpus)
}

// upCase boots kernels on a cluster, all at once, and has each do all of that.
func upCase(t *testing.T, vcpus int, versions ...string) {
	long(t)
	start := time.Now()
	c := startCluster(t)
	t.Logf("the cluster is up after %s", since(start))
	name := func(version string) string { return "debian-" + strings.ReplaceAll(version, ".", "-") }
	for i, version := range versions {
		disk := c.disk("data-"+version, 96<<20)
		c.must(c.linuxArgs(name(version), version, userScript(vcpus), []string{"virtio_blk"}, "--vcpus", fmt.Sprint(vcpus), "--disk", disk, "--span", string("abc"[i%3]))...)
	}
	want := []string{"FORKED 1000", "SAME 67108864"}
	for i := range vcpus {
		want = append(want, strings.Replace(smpSum, "SUMS", fmt.Sprintf("SUMS%d", i), 1))
	}
	for _, version := range versions {
		c.ended(name(version), want...)
		if out := c.must("vm", "show", name(version), "-o", "json"); !strings.Contains(out, `"exit_status": 0`) || !strings.Contains(out, `"state": "exited"`) {
			t.Errorf("it ended so:\n%s", out)
		}
	}
	t.Logf("done in %s", since(start))
}

// TestUpOne boots both kernels at once, each on a vCPU of its own.
func TestUpOne(t *testing.T) { upCase(t, 1, "6.12", "6.1") }

func TestUpTwo612(t *testing.T) { upCase(t, 2, "6.12") }

func TestUpTwo61(t *testing.T) { upCase(t, 2, "6.1") }

// TestUpLives612 resets a machine in all the ways there are; each time it comes back in place, with its disk.
func TestUpLives612(t *testing.T) {
	long(t)
	c := startCluster(t)
	disk := c.disk("state", 1<<20)
	c.must(c.linuxArgs("phoenix", "6.12", `
n=$(dd if=/dev/vda bs=1 count=1 2>/dev/null | tr -d '\0'); n=$((n+1))
printf $n | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
echo LIFE $n
echo 1 >/proc/sys/kernel/sysrq
case $n in
1) reboot -f;;
2) echo c >/proc/sysrq-trigger;;
3) echo t >/sys/kernel/reboot/type; reboot -f;;
esac
read -r line </dev/ttyS0; echo "GOT $line"
poweroff -f`, []string{"virtio_blk"}, "--disk", disk)...)
	c.must("vm", "console", "phoenix", "--attach", "--offset", "0", "--until", "LIFE 4", "--timeout", clusterLimit.String())
	out, errs, code := c.tryInput("typed words\n", "vm", "console", "phoenix", "--attach", "--offset", "0", "--until", "GOT typed words", "--timeout", clusterLimit.String())
	if code != 0 {
		t.Errorf("console: exit code %d\n%s%s", code, out, errs)
	}
	c.ended("phoenix", "LIFE 1", "LIFE 2", "LIFE 3", "LIFE 4", "GOT typed words")
}
