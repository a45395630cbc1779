package server

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/wire"
)

// Workers are told what the configuration says about their traffic and their jail.
func TestWorkersAreToldOfTheirJail(t *testing.T) {
	if err := jail.Supported(); err != nil {
		t.Skip(err)
	}
	c := newClusterWith(t, 1, func(cfg *config.Server) { cfg.Jail, cfg.PageEncryption = true, true })
	c.awaitLive(1, c.servers...)
	s := c.servers[0]
	if _, err := s.run("web", "", 1, "a"); err != nil {
		t.Fatal(err)
	}
	s.wait("web", api.WaitVMRequest_UNTIL_STARTED)
	specs, err := filepath.Glob(filepath.Join(s.cfg.DataDir, "workers", "*", wire.WorkerSpecFile))
	if err != nil || len(specs) != 1 {
		t.Fatalf("%v, %v", specs, err)
	}
	spec := readSpec(filepath.Dir(specs[0]))
	if !spec.Seal || spec.Jail == nil || os.Getuid() == 0 && spec.Jail.UID == 0 {
		text, _ := json.Marshal(spec)
		t.Errorf("%s", text)
	}
	if _, err := s.client.StopVM(s.ctx(), &api.StopVMRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
}

// A worker gets connections to parts of its VM, and to nothing else however it asks.
func TestConnectionsAreHandedToTheirWorker(t *testing.T) {
	dir, err := os.MkdirTemp("", "cv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	s, err := newSupervisor(filepath.Join(dir, "workers"), nil, "127.0.0.1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.mayDial = func(vm ident.VMID, addr string) bool { return vm == 7 && addr == target.Addr().String() }
	hand, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, wire.WorkerHandSocket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer hand.Close()
	w := s.add(7, 1, dir)
	if w.proc, err = openProcess(os.Getpid(), 0); err != nil {
		t.Fatal(err)
	}
	defer w.proc.Close()
	for i, c := range []struct {
		addr string
		want string // "" for a connection
	}{{target.Addr().String(), ""}, {"203.0.113.1:80", "no part of this VM"}, {"", "no part of this VM"}} {
		s.dialFor(w, wire.WorkerDial{ID: uint64(i), Addr: c.addr})
		conn, err := hand.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		buf, oob := make([]byte, 512), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		conn.Close()
		if err != nil || n < 8 || binary.LittleEndian.Uint64(buf) != uint64(i) {
			t.Fatalf("%s: %d bytes, %v", c.addr, n, err)
		}
		if (oobn > 0) != (c.want == "") || !strings.Contains(string(buf[8:n]), c.want) {
			t.Errorf("%s: %q, %d bytes of rights", c.addr, buf[8:n], oobn)
		}
		if oobn > 0 {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				t.Fatal(err)
			}
			fds, err := unix.ParseUnixRights(&msgs[0])
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fds[0])
		}
	}
	if got := s.counts.refusedDials.Load(); got != 2 {
		t.Errorf("%d refused", got)
	}
}

// A worker gets a PID namespace of its own; where the kernel refuses that, it runs without, and so do later ones.
func TestBeginsWithoutNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root, who may make PID namespaces")
	}
	s := &supervisor{jail: &wire.WorkerJail{}, log: zerolog.Nop()}
	for i, c := range []struct{ refused, apart bool }{{false, true}, {true, false}, {false, false}} {
		tries := 0
		cmd, err := s.begin(func() *exec.Cmd {
			tries++
			cmd := exec.Command("sleep", "3600")
			cmd.SysProcAttr = &syscall.SysProcAttr{}
			if c.refused && tries == 1 {
				cmd.SysProcAttr.Cloneflags = unix.CLONE_THREAD // never alone: EINVAL
			}
			return cmd
		})
		if err != nil {
			t.Fatal(err)
		}
		own, err1 := os.Readlink("/proc/self/ns/pid")
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
		if err := errors.Join(err1, err2); err != nil || (own != its) != c.apart {
			t.Errorf("%d: namespace %s beside %s, %v", i, its, own, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
