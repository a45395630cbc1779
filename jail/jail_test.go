package jail

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/tests/setting"
)

// The test binary is also the prisoner: run with a crime, it enters the jail and tries it.
const crimeVariable = "CELLVISOR_TEST_CRIME"

func TestMain(m *testing.M) {
	if crime := os.Getenv(crimeVariable); crime != "" {
		os.Exit(prisoner(crime))
	}
	setting.Plain()
	os.Exit(m.Run())
}

// prisoner returns 0 if the crime was refused with an error; a crime that works exits with 1. Threads that existed before are in jail too.
func prisoner(crime string) int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 3
	}
	var threads sync.WaitGroup
	release := make(chan struct{})
	results := make(chan error, 1)
	threads.Go(func() {
		<-release
		results <- commit(crime, listener)
	})
	var as *Owner
	if os.Getuid() == 0 {
		as = &Owner{UID: nobody, GID: nobody}
	}
	if _, err := Enter(as, crime == "connected"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	close(release)
	err = <-results
	threads.Wait()
	if err == nil {
		return 1
	}
	if crime == "none" {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

func commit(crime string, listener net.Listener) error {
	switch crime {
	case "open":
		_, err := os.ReadFile("/etc/passwd")
		return err
	case "create":
		return os.WriteFile("evidence", nil, 0o600)
	case "connect":
		_, err := net.Dial("tcp", listener.Addr().String())
		return err
	case "connected": // what is allowed to those on the switch
		if _, err := net.Dial("udp", "127.0.0.1:9"); err == nil {
			return nil
		}
		_, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			return errors.New("connected")
		}
		return nil
	case "udp":
		_, err := net.Dial("udp", "127.0.0.1:9")
		return err
	case "unix":
		_, err := net.Dial("unix", "/run/systemd/notify")
		return err
	case "exec":
		return syscall.Exec("/bin/true", []string{"true"}, nil)
	case "fork":
		return exec.Command("/bin/true").Run()
	case "ptrace":
		return unix.PtraceAttach(os.Getppid())
	case "memory":
		var b [8]byte
		_, err := unix.ProcessVMReadv(os.Getppid(), []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		return err
	case "kill":
		return unix.Kill(os.Getppid(), 0)
	case "tgkill":
		return unix.Tgkill(os.Getppid(), os.Getppid(), 0)
	case "namespace":
		return unix.Unshare(unix.CLONE_NEWUSER)
	case "mount":
		return unix.Mount("none", "/tmp", "tmpfs", 0, "")
	case "root":
		return unix.Setuid(0)
	case "code":
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	case "uring":
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno
	case "userfault":
		_, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, 0, 0, 0)
		if errno == 0 {
			return nil
		}
		return errno
	case "none":
		return work()
	}
	return nil
}

// work is what workers do.
func work() error {
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { _ = bytes.Repeat([]byte{1}, 1<<20) })
	}
	all.Wait()
	if _, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if _, err := os.Stdout.WriteString("at work\n"); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// run runs a process that commits the crime. With apart it is in a PID namespace of its own.
func run(t *testing.T, crime string, apart bool) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crimeVariable+"="+crime)
	if apart {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	}
	cmd.Dir = t.TempDir()
	out, _ := cmd.CombinedOutput()
	if _, err := os.Stat(filepath.Join(cmd.Dir, "evidence")); err == nil {
		t.Errorf("%s: it made a file", crime)
	}
	return cmd, string(out)
}

func TestWhatTheJailStops(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		crime string
		dies  bool
	}{
		{"open", false}, {"create", false}, {"connect", false}, {"connected", false}, {"udp", false}, {"unix", false}, {"fork", false},
		{"kill", false}, {"tgkill", false}, {"code", false}, {"userfault", false},
		{"exec", true}, {"ptrace", true}, {"memory", true}, {"namespace", true}, {"mount", true}, {"root", true}, {"uring", true},
	} {
		for _, apart := range []bool{false, os.Getuid() == 0} {
			t.Run(fmt.Sprintf("%s/%v", c.crime, apart), func(t *testing.T) { tryCrime(t, c.crime, apart, c.dies) })
		}
	}
}

func tryCrime(t *testing.T, crime string, apart, dies bool) {
	t.Parallel()
	cmd, out := run(t, crime, apart)
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case dies && !(status.Signaled() && status.Signal() == unix.SIGSYS):
		t.Errorf("it was not killed: %v\n%s", cmd.ProcessState, out)
	case !dies && status.ExitStatus() != 0:
		t.Errorf("it was not refused: %v\n%s", cmd.ProcessState, out)
	}
}

func TestWhatTheJailAllows(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	if cmd, out := run(t, "none", false); cmd.ProcessState.ExitCode() != 1 || out != "at work\n" {
		t.Errorf("honest work fails: %v\n%s", cmd.ProcessState, out)
	}
}

// The filter as the kernel's machine would run it: every call not named is refused, another architecture or ABI kills.
func TestProgram(t *testing.T) {
	p := program(77, false, false)
	run := func(nr, arch uint32, args ...uint32) uint32 {
		data := make([]uint32, 16)
		data[0], data[1] = nr, arch
		for i, a := range args {
			data[4+2*i] = a
		}
		var acc uint32
		for pc := 0; ; pc++ {
			switch s := p[pc]; s.Code {
			case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
				acc = data[s.K/4]
			case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
				acc &= s.K
			case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
				pc += jump(acc == s.K, s)
			case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
				pc += jump(acc >= s.K, s)
			case unix.BPF_RET | unix.BPF_K:
				return s.K
			default:
				t.Fatalf("statement %d: code %#x", pc, s.Code)
			}
		}
	}
	named := map[uint32]bool{unix.SYS_PRCTL: true}
	for _, nr := range free {
		named[nr] = true
		if run(nr, unix.AUDIT_ARCH_X86_64) != allow {
			t.Errorf("call %d is not allowed", nr)
		}
	}
	for _, nr := range fatal {
		if named[nr] || run(nr, unix.AUDIT_ARCH_X86_64) != kill {
			t.Errorf("call %d does not kill, or is allowed as well", nr)
		}
		named[nr] = true
	}
	for nr := range guarded(77, false) {
		named[nr] = true
	}
	for nr := uint32(0); nr < 500; nr++ {
		if !named[nr] && nr != unix.SYS_CLONE3 && run(nr, unix.AUDIT_ARCH_X86_64) != refuse {
			t.Errorf("call %d is not refused", nr)
		}
	}
	for _, c := range []struct {
		what string
		got  uint32
		want uint32
	}{
		{"32-bit call", run(unix.SYS_READ, unix.AUDIT_ARCH_I386), kill},
		{"x32 call", run(x32Bit|unix.SYS_READ, unix.AUDIT_ARCH_X86_64), kill},
		{"send", run(unix.SYS_SENDTO, unix.AUDIT_ARCH_X86_64, 5, 0, 0, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), allow},
		{"send that connects", run(unix.SYS_SENDTO, unix.AUDIT_ARCH_X86_64, 5, 0, 0, unix.MSG_FASTOPEN), refuse},
		{"own thread's signal", run(unix.SYS_TGKILL, unix.AUDIT_ARCH_X86_64, 77, 80, 10), allow},
		{"another's", run(unix.SYS_TGKILL, unix.AUDIT_ARCH_X86_64, 78, 78, 10), refuse},
		{"thread", run(unix.SYS_CLONE, unix.AUDIT_ARCH_X86_64, unix.CLONE_VM|unix.CLONE_FS|unix.CLONE_FILES|unix.CLONE_SIGHAND|unix.CLONE_THREAD), allow},
		{"process", run(unix.SYS_CLONE, unix.AUDIT_ARCH_X86_64, uint32(unix.SIGCHLD)), refuse},
		{"name", run(unix.SYS_PRCTL, unix.AUDIT_ARCH_X86_64, unix.PR_SET_NAME), allow},
		{"dumpable", run(unix.SYS_PRCTL, unix.AUDIT_ARCH_X86_64, unix.PR_SET_DUMPABLE), refuse},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func jump(yes bool, s unix.SockFilter) int {
	if yes {
		return int(s.Jt)
	}
	return int(s.Jf)
}

func TestFindOwner(t *testing.T) {
	if o, err := FindOwner("root"); err != nil || o != (Owner{}) {
		t.Errorf("root: %v, %v", o, err)
	}
	if o, err := FindOwner(""); err != nil || o.UID == 0 {
		t.Errorf("default: %v, %v", o, err)
	}
	if _, err := FindOwner("no-such-user-here"); err == nil || !strings.Contains(err.Error(), "useradd") {
		t.Errorf("nobody known: %v", err)
	}
}
