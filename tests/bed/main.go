// The bed runs tests of stock Linux guests on machines without VT-x or SVM. QEMU's software emulation of an AMD processor includes SVM, so a
// Debian kernel inside it has a real kvm-amd, and the guests of that boot at a bearable speed.
//
//	this program ── qemu, TCG ──► outer machine: Debian kernel, busybox, kvm-amd, the tests' binary
//	                                   └── kvm-amd ──► the guests under test, run by our own packages
//
// Usage:
//
//	bed fetch                      get kernels, modules and busybox from Debian's packages into the cache
//	bed [-run REGEX] [-short] test run the cases inside, with a report each, and a summary
//	bed sh 'COMMAND' [FILE...]     run a command inside; the files appear in /
//	bed guest                      a cluster inside: with -kernel a guest on it, attached to its console; with -script a script; else a shell
//	bed [-run REGEX] direct        run the cases on this machine's own KVM
//
// Everything lies in the cache directory ($CELLVISOR_BED_CACHE, or ~/.cache/cellvisor-linux), reports in its folder "reports".
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	var b bed
	flag.StringVar(&b.run, "run", "", "cases to run, a regular expression as for go test")
	flag.BoolVar(&b.short, "short", false, "short cases only")
	flag.BoolVar(&b.echo, "v", false, "show everything that is printed inside")
	flag.DurationVar(&b.limit, "limit", 30*time.Minute, "how long everything may take")
	flag.IntVar(&b.cpus, "smp", 1, "CPUs of an outer machine; with several QEMU 7 now and then runs code that another CPU has just patched as it was before")
	flag.BoolVar(&b.icount, "icount", false, "let the outer machine's time pass by instructions, not by the clock, as that of cases called TestSpan… always does; it takes longer, and all seems fast inside")
	flag.IntVar(&b.jobs, "jobs", 2, "outer machines that the cases are divided over")
	flag.IntVar(&b.memoryMiB, "memory", 3072, "memory of the outer machine in MiB")
	flag.StringVar(&b.binary, "binary", "", "use this test binary instead of building one")
	flag.StringVar(&b.kernel, "kernel", "", "kernel of bed guest")
	flag.StringVar(&b.initrd, "initrd", "", "initial RAM disk of bed guest")
	flag.StringVar(&b.args, "args", "console=ttyS0 panic=-1", "kernel command line of bed guest")
	flag.StringVar(&b.script, "script", "", "script that bed guest runs beside the cluster")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bed [flags] fetch | test | direct | guest | sh COMMAND [FILE...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := b.do(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		if errors.Is(err, errNoPackages) {
			os.Exit(statusNoPackages)
		}
		os.Exit(1)
	}
}

// bed is one use of the test bed.
type bed struct {
	run         string
	short, echo bool
	icount      bool
	limit       time.Duration
	cpus, jobs  int
	memoryMiB   int
	binary      string

	kernel, initrd, args, script string

	cache          string
	guestFilesPath string
}

// errNoPackages says that the bed cannot be furnished; main then exits with statusNoPackages, so that a caller may go on without.
var errNoPackages = errors.New("no way to get the packages of Debian")

const statusNoPackages = 77

func (b *bed) do(args []string) error {
	b.cache = os.Getenv("CELLVISOR_BED_CACHE")
	if b.cache == "" {
		dir, err := os.UserHomeDir()
		if err == nil {
			dir = filepath.Join(dir, ".cache")
		} else {
			dir = os.TempDir()
		}
		b.cache = filepath.Join(dir, "cellvisor-linux")
	}
	b.guestFilesPath = filepath.Join(b.cache, "guest")
	if len(args) == 0 {
		args = []string{"test"}
	}
	if args[0] == "direct" {
		if err := runsRing0(); err != nil {
			return err
		}
	}
	if err := b.fetch(); err != nil {
		return fmt.Errorf("%w: %w", errNoPackages, err)
	}
	switch args[0] {
	case "fetch":
		fmt.Println(b.guestFilesPath)
		return nil
	case "test":
		return b.test()
	case "direct":
		return b.direct()
	case "guest":
		return b.guest()
	case "sh":
		if len(args) < 2 {
			return fmt.Errorf("sh: which command?")
		}
		return b.shell(args[1], args[2:])
	}
	return fmt.Errorf("unknown command %q", args[0])
}
