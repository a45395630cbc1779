package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/tests/bed/cpio"
)

// outerKernel is the outer machine's, one of kernels.
const outerKernel = "6.12"

// Lines that the outer machine prints for this program.
const (
	markBegin  = "@case-begin " // name
	markEnd    = "@case-end "   // name status seconds
	markStatus = "@bed-status " // of the whole script
)

// initScript starts the outer machine and runs /cmd.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin; stty -echo
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm /dev/net; mount -t devpts none /dev/pts; mount -t tmpfs none /dev/shm; mount -t tmpfs none /tmp
case "$(cat /proc/cmdline)" in *idle=halt*) mount -t debugfs none /sys/kernel/debug; cd /sys/kernel/debug/sched && echo NO_RUN_TO_PARITY >features && echo 200000 >base_slice_ns;; esac
for m in irqbypass kvm kvm-amd tun; do insmod /bed/` + outerKernel + `/$m.ko; done; ip link set lo up
export CELLVISOR_BED=/bed CELLVISOR_BIN=/cellvisor REQUIRE_KVM=1 HOME=/tmp
for word in $(cat /proc/cmdline); do case $word in CELLVISOR_*=*) export $word;; esac; done
cd /; sh /cmd; echo "` + markStatus + `$?"; poweroff -f
`

// casesScript runs the cases one by one, each in a process of its own.
const casesScript = `failed=0
if %[3]t; then # what cases called TestUp share
  /cellvisor up --detach --dir /tmp/lab --slow 16 --memory 600MiB --timeout 3m && export CELLVISOR_BED_LAB=/tmp/lab
fi
for c in %[1]s; do
  echo "` + markBegin + `$c"; read -r begin rest </proc/uptime
  /cases.test -test.run "^$c$" -test.v -test.timeout 10m %[2]s; status=$?; [ $status = 0 ] || failed=1
  read -r end rest </proc/uptime
  echo "` + markEnd + `$c $status $begin $end"
done
exit $failed
`

// build compiles the cases, the program and what guests run into static binaries.
func (b *bed) build() (cases, program string, err error) {
	cases, program = filepath.Join(b.cache, "cases.test"), b.programPath()
	if err := goTool("build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(b.guestFilesPath, "walker"), "./tests/bed/walker"); err != nil {
		return "", "", err
	}
	if b.binary != "" {
		cases = b.binary
	} else if err := goTool("test", "-c", "-trimpath", "-o", cases, "./tests/bed/cases"); err != nil {
		return "", "", err
	}
	return cases, program, goTool("build", "-trimpath", "-o", program, "./cmd/cellvisor")
}

func (b *bed) programPath() string { return filepath.Join(b.cache, "cellvisor") }

func goTool(args ...string) error {
	c := exec.Command(defaultTo(os.Getenv("GO"), "go"), args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c.Run()
}

// usual are the cases that a run without -run has. The others see one thing each that these do: for who looks for a fault.
const usual = "^(TestBootPVH612|TestBootBzImage612|TestConsoleEntropy612|TestUp[^N].*)$"

// list asks the binary for the cases that the flags choose.
func (b *bed) list(binary string) ([]string, error) {
	pattern := b.run
	if pattern == "" {
		pattern = usual
	}
	out, err := exec.Command(binary, "-test.list", pattern).Output()
	if err != nil {
		return nil, fmt.Errorf("list cases: %w", err)
	}
	var names []string
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "Test") {
			names = append(names, line)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no case matches %q", b.run)
	}
	return names, nil
}

func (b *bed) test() error {
	binary, program, err := b.build()
	if err != nil {
		return err
	}
	names, err := b.list(binary)
	if err != nil {
		return err
	}
	files := map[string]string{"cases.test": binary, "cellvisor": program}
	var countedNames, others []string
	for _, n := range names {
		if isCounted(n) {
			countedNames = append(countedNames, n)
		} else {
			others = append(others, n)
		}
	}
	lanes := b.lanes(others)
	errs := make([]error, len(lanes))
	var all sync.WaitGroup
	for i, lane := range lanes {
		all.Go(func() { errs[i] = b.testLane(lane, files) })
	}
	all.Wait()
	if len(countedNames) > 0 {
		counted := *b
		counted.icount = true
		errs = append(errs, counted.testLane(countedNames, files))
	}
	return errors.Join(errs...)
}

// isCounted tells whether a case is of a machine over several servers whose pages travel all the time, which takes too long by the clock.
func isCounted(name string) bool { return strings.HasPrefix(name, "TestSpan") }

// testLane runs cases one after the other in an outer machine of their own.
func (b *bed) testLane(names []string, files map[string]string) error {
	short := ""
	if b.short {
		short = "-test.short"
	}
	r := newReport(filepath.Join(b.cache, "reports"), b.echo)
	err := b.outer(fmt.Sprintf(casesScript, strings.Join(names, " "), short, sharesCluster(names)), files, r.line)
	return errors.Join(r.summary(names), err)
}

// seconds that cases take on a quiet machine; those that are not here take a few.
var seconds = map[string]int{
	"TestUpOne612": 60, "TestUpOne61": 60, "TestUpTwo612": 70, "TestUpTwo61": 90, "TestUpLives612": 50, "TestUpNet612": 60, "TestUpMove612": 250,
	"TestUpSave612": 60, "TestUpSpan612": 40, "TestUpProtect612": 80, "TestUpBalloon612": 30, "TestUpShort612": 20,
}

// lanes divides cases over as many outer machines as there are to be, each of which has one CPU: the longest case first, to who has least to do.
func (b *bed) lanes(names []string) [][]string {
	if len(names) == 0 {
		return nil
	}
	if b.echo || b.jobs < 2 || len(names) < 2 {
		return [][]string{names}
	}
	longest := slices.Clone(names)
	slices.SortStableFunc(longest, func(x, y string) int { return seconds[y] - seconds[x] })
	lanes, load := make([][]string, min(b.jobs, len(names))), make([]int, min(b.jobs, len(names)))
	for _, name := range longest {
		least := slices.Index(load, slices.Min(load))
		lanes[least] = append(lanes[least], name)
		load[least] += 5 + seconds[name]
	}
	return lanes
}

// sharesCluster tells whether one of the cases uses the cluster that a run's cases share. Those called TestUpSpan have their own, and two at once would
// only slow each other down.
func sharesCluster(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		return strings.HasPrefix(n, "TestUp") && !strings.HasPrefix(n, "TestUpSpan")
	})
}

func (b *bed) direct() error {
	binary, program, err := b.build()
	if err != nil {
		return err
	}
	args := []string{"-test.v", "-test.run", b.run}
	if b.short {
		args = append(args, "-test.short")
	}
	c := exec.Command(binary, args...)
	c.Env = append(os.Environ(), "CELLVISOR_BED="+b.guestFilesPath, "CELLVISOR_BIN="+program, "REQUIRE_KVM=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c.Run()
}

func (b *bed) shell(script string, paths []string) error {
	files := map[string]string{}
	for _, p := range paths {
		files[filepath.Base(p)] = p
	}
	return b.outer(script, files, func(line string) { fmt.Println(line) })
}

// outer runs a script in the outer machine. Each line that is printed goes to line; without, its console is joined with this program's.
func (b *bed) outer(script string, files map[string]string, line func(string)) error {
	file, err := os.CreateTemp(b.cache, "outer-*.cpio")
	if err != nil {
		return err
	}
	ramdisk := file.Name()
	defer os.Remove(ramdisk)
	if err := file.Close(); err != nil {
		return err
	}
	if err := b.pack(ramdisk, script, files); err != nil {
		return err
	}
	stopped, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(stopped, b.limit)
	defer cancel()
	emulation, cmdline := b.emulation()
	c := exec.CommandContext(ctx, "qemu-system-x86_64", append(emulation, "-cpu", "EPYC,+svm,+npt",
		"-m", strconv.Itoa(b.memoryMiB), "-smp", strconv.Itoa(b.cpus), "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", filepath.Join(b.guestFilesPath, "vmlinuz-"+outerKernel), "-initrd", ramdisk,
		"-append", strings.Join(append(settings(), "console=ttyS0 panic=-1 reboot=t mitigations=off quiet", cmdline), " "))...)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	var in io.WriteCloser
	if line == nil {
		c.Stdin = os.Stdin
	} else if in, err = c.StdinPipe(); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	if in != nil {
		go poke(in)
	}
	var status string
	if line == nil {
		status = show(out)
	} else {
		status = readLines(out, line)
	}
	err = c.Wait()
	switch {
	case stopped.Err() != nil:
		return errors.New("interrupted")
	case ctx.Err() != nil:
		return fmt.Errorf("the outer machine did not end within %v", b.limit)
	case status == "":
		return fmt.Errorf("the outer machine ended without a status: %v", err)
	case status != "0":
		return fmt.Errorf("status %s", status)
	}
	return nil
}

// emulation is how the outer machine's time passes, in words for QEMU and for the machine's kernel: by the clock, or by a nanosecond an instruction. Then it
// is as fast as a real machine by its own clock, however slow or busy this one is: its guests' timers do not tick, and nobody's patience ends, before they
// have done anything. Its idle processor halts, and time leaps to the next timer at once. Whoever wakes has to run
// soon, since one that waits in a loop makes time stand still: each PAUSE costs QEMU a microsecond, in which a few nanoseconds pass.
func (b *bed) emulation() (qemu []string, cmdline string) {
	if b.icount {
		return []string{"-icount", "shift=0,sleep=off", "-accel", "tcg,thread=single,tb-size=512"}, "idle=halt"
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=512"}, ""
}

// poke types a NUL now and then, until the outer machine has ended. QEMU 7.2 notes and forgets a guest's virtual interrupts without the lock under which
// its timers raise real ones, so now and then one of these is lost. If it was the outer machine's timer, and the machine has nothing else to do, it would
// sleep for ever; any other interrupt brings the lost one along.
func poke(in io.Writer) {
	for range time.Tick(100 * time.Millisecond) {
		if _, err := in.Write([]byte{0}); err != nil {
			return
		}
	}
}

// withoutPokes takes off the front of a line what poke has typed, as a terminal that echoes it shows it.
func withoutPokes(line string) string {
	for {
		rest := strings.TrimPrefix(strings.TrimPrefix(line, "\x00"), "^@")
		if rest == line {
			return line
		}
		line = rest
	}
}

// settings are the environment's variables that the cases look at, handed on by the outer machine's command line.
func settings() []string {
	var out []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "CELLVISOR_BED_") && !strings.HasPrefix(v, "CELLVISOR_BED_CACHE=") && !strings.ContainsAny(v, " \"") {
			out = append(out, v)
		}
	}
	return out
}

// readLines hands on lines until the output ends, and returns the status that was among them.
func readLines(out io.Reader, line func(string)) (status string) {
	r := bufio.NewReaderSize(out, 1<<16)
	for {
		text, err := r.ReadString('\n')
		if text = strings.TrimRight(withoutPokes(text), "\r\n"); text != "" || err == nil {
			if after, ok := strings.CutPrefix(text, markStatus); ok {
				status = after
			} else {
				line(text)
			}
		}
		if err != nil {
			return status
		}
	}
}

// pack writes the outer machine's initial RAM disk: busybox, the guests' files, the script and its files. It is not compressed, as
// unpacking is slow inside.
func (b *bed) pack(path, script string, files map[string]string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(out)
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "run", "bed"} {
		w.Dir(d)
	}
	w.Char("dev/console", 0o600, 5, 1)
	w.File("init", 0o755, []byte(initScript))
	w.File("cmd", 0o755, []byte(script))
	w.Symlink("bin/busybox", "/bed/busybox")
	err = filepath.WalkDir(b.guestFilesPath, func(p string, d os.DirEntry, err error) error {
		rel, relErr := filepath.Rel(b.guestFilesPath, p)
		if err = errors.Join(err, relErr); err != nil || rel == "." {
			return err
		}
		if b.short && !forShort(rel) {
			return nil
		}
		if d.IsDir() {
			w.Dir("bed/" + rel)
			return nil
		}
		data, err := os.ReadFile(p)
		w.File("bed/"+rel, 0o755, data)
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range sorted(files) {
		data, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		w.File(name, 0o755, data)
	}
	return errors.Join(w.Close(), out.Flush())
}

// forShort tells which of the guests' files the short cases need: those of one kernel, as a bzImage.
func forShort(path string) bool {
	version := strings.TrimPrefix(filepath.Dir(path), ".") + strings.TrimPrefix(path, "vmlinuz-")
	return path == "busybox" || strings.HasPrefix(version, outerKernel)
}

func sorted(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
