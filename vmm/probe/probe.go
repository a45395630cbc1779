// Package probe finds out whether this host can run virtual machines, for `doctor` and for a server's start: each thing that is needed is
// tried, and what fails comes with what to do about it.
//
// It stands above vmm/kvm and vmm/uffd, which it uses to try.
package probe

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/cpuidle"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/uffd"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // without it no VM runs here; otherwise it only costs speed or size
	Detail string `json:"detail"` // what was found
	Fix    string `json:"fix,omitempty"`
}

// String is one line for people.
func (c Check) String() string {
	state := "ok"
	switch {
	case !c.OK && c.Needed:
		state = "FAIL"
	case !c.OK:
		state = "warn"
	}
	s := fmt.Sprintf("%-4s  %-12s  %s", state, c.Name, c.Detail)
	if c.Fix != "" {
		s += ": " + c.Fix
	}
	return s
}

// All does every check, in a fixed order. memory is what this server means to give to guests; 0 leaves that question out.
func All(memory ident.Bytes) []Check {
	return []Check{kernel(), device(), faults(), memfd(), capacity(memory), priority(), wakeUps(), files()}
}

// Err returns an error that names every needed check that failed, nil if none did.
func Err(checks []Check) error {
	var bad []string
	for _, c := range checks {
		if c.Needed && !c.OK {
			line := c.Name + ": " + c.Detail
			if c.Fix != "" {
				line += " (" + c.Fix + ")"
			}
			bad = append(bad, line)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("this host cannot run virtual machines: %s", strings.Join(bad, "; "))
}

func kernel() Check {
	c := Check{Name: "kernel", Needed: true}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		c.Detail = err.Error()
		return c
	}
	release := unix.ByteSliceToString(u.Release[:])
	c.Detail = "Linux " + release
	c.OK = newEnough(release, uffd.OldestKernel)
	if !c.OK {
		c.Fix = "Linux " + uffd.OldestKernel + " or newer is needed"
	}
	return c
}

// newEnough compares the first two numbers of a kernel release with those of oldest. A release that does not begin with numbers passes: the
// features themselves are tried, too.
func newEnough(release, oldest string) bool {
	have, ok := twoNumbers(release)
	want, _ := twoNumbers(oldest)
	return !ok || have[0] > want[0] || have[0] == want[0] && have[1] >= want[1]
}

func twoNumbers(s string) (n [2]int, ok bool) {
	major, rest, found := strings.Cut(s, ".")
	if !found {
		return n, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	var err [2]error
	n[0], err[0] = strconv.Atoi(major)
	n[1], err[1] = strconv.Atoi(rest[:end])
	return n, err[0] == nil && err[1] == nil
}

func device() Check {
	c := Check{Name: "kvm", Needed: true}
	s, err := kvm.Open()
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer s.Close()
	vm, err := s.CreateVM()
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer vm.Close()
	v, err := vm.CreateVCPU(0)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer v.Close()
	c.OK, c.Detail = true, fmt.Sprintf("%s, up to %d vCPUs a VM", kvm.DevicePath, s.MaxVCPUs())
	return c
}

func faults() Check {
	c := Check{Name: "userfaultfd", Needed: true}
	if err := uffd.Check(); err != nil {
		c.Detail = err.Error()
		return c
	}
	c.OK, c.Detail = true, "missing, minor and write-protect faults on shared memory"
	return c
}

// wakeUps looks whether CPUs can be kept awake while pages travel.
func wakeUps() Check {
	c := Check{Name: "wake-ups", OK: true, Detail: "idle CPUs can be kept awake while pages travel"}
	latency, err := cpuidle.Open()
	if err != nil {
		c.OK, c.Detail = false, err.Error()
		c.Fix = "run as root, or give access to it; until then remote page faults wait for sleeping CPUs"
	}
	latency.Close()
	return c
}

func memfd() Check {
	c := Check{Name: "memfd", Needed: true}
	r, err := ram.New(ident.PageSize)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer r.Close()
	if err := r.WritePage(0, make([]byte, ident.PageSize)); err != nil {
		c.Detail = err.Error()
		return c
	}
	c.OK, c.Detail = true, "guest memory can be made"
	return c
}

func capacity(memory ident.Bytes) Check {
	c := Check{Name: "memory", OK: true}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		c.OK, c.Detail = false, err.Error()
		return c
	}
	total := ident.Bytes(uint64(si.Totalram) * uint64(si.Unit))
	c.Detail = fmt.Sprintf("%d MiB", total/ident.MiB)
	if memory > total {
		c.OK, c.Needed = false, true
		c.Detail = fmt.Sprintf("%d MiB, and guests are to get %d MiB", total/ident.MiB, memory/ident.MiB)
		c.Fix = "configure less memory for this server"
	}
	return c
}

// priority tells whether threads that serve pages may be put before vCPU threads.
func priority() Check {
	c := Check{Name: "priority", OK: true}
	if unix.Geteuid() == 0 {
		c.Detail = "page-serving threads may run at nice -20"
		return c
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NICE, &lim); err != nil {
		c.OK, c.Detail = false, err.Error()
		return c
	}
	// The limit counts from 1 (nice 19) to 40 (nice -20).
	best := 20 - int(min(lim.Cur, 40))
	c.Detail = fmt.Sprintf("page-serving threads may run at nice %d", best)
	if best > -20 {
		c.OK, c.Fix = false, "run as root or with CAP_SYS_NICE, or raise `ulimit -e` to 40: a busy guest slows its own page traffic otherwise"
	}
	return c
}

func files() Check {
	c := Check{Name: "open files", OK: true}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		c.OK, c.Detail = false, err.Error()
		return c
	}
	const enough = 1024
	if c.Detail = strconv.FormatUint(lim.Cur, 10); lim.Cur == math.MaxUint64 {
		c.Detail = "no limit"
	}
	if lim.Max < enough {
		c.OK, c.Fix = false, fmt.Sprintf("raise `ulimit -n` to %d or more", enough)
	}
	return c
}
