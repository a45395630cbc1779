package server

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/tests/setting"
	"github.com/cellvisor/cellvisor/wire"
)

// The test binary is also a worker: run as `… worker --dir DIR` it speaks the control protocol and has no KVM behind it. The spec's Args say
// how it behaves:
//
//	""       ready at once, runs until Stop
//	deaf     never listens
//	mute     listens and says nothing, the first time
//	exit     ends the VM with status 7 when it gets its members
//	crash    exits with status 3 and a last line in its log
//	stubborn ignores Stop and SIGTERM
//	hang-up  closes the connection when it gets its first members
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == workerCommand[0] && os.Args[2] == workerCommand[1] {
		if err := fakeWorker(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	setting.Plain()
	// When serf cannot listen, serf.Create leaves this one behind. The process ends then, but not a test's.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/hashicorp/serf/serf.(*serfQueries).stream"))
}

// endWith ends the process once the directory that it serves is gone: a worker outlives its server, but not the test.
func endWith(dir string) {
	for range time.Tick(time.Second) {
		if _, err := os.Stat(filepath.Join(dir, wire.WorkerSpecFile)); err != nil {
			os.Exit(4)
		}
	}
}

func fakeWorker(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, wire.WorkerSpecFile))
	if err != nil {
		return err
	}
	var spec wire.WorkerSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	switch spec.Args {
	case "crash":
		return fmt.Errorf("the machine is made of cheese")
	case "deaf":
		go endWith(dir)
		select {}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	_ = os.Remove(wire.WorkerCtlSocket)                // of one that did not come up
	l, err := net.Listen("unix", wire.WorkerCtlSocket) // the working directory is dir
	if err != nil {
		return err
	}
	go endWith(dir)
	if _, err := os.Stat(filepath.Join(dir, "mute")); spec.Args == "mute" && err != nil {
		note(dir, "mute", "once\n")
		select {}
	}
	var mu sync.Mutex
	var members *wire.WorkerMembers
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		mu.Lock()
		ready := wire.WorkerReady{VM: spec.VM, Part: spec.Part, PID: os.Getpid(), StartTime: start, PageAddr: "127.0.0.1:1"}
		if members != nil {
			ready.Epoch = members.Epoch
		}
		mu.Unlock()
		_ = wire.WriteJSON(conn, wire.FromWorker{Ready: &ready})
		_ = wire.WriteJSON(conn, wire.FromWorker{Stats: &wire.WorkerStats{RemoteReads: 17, LagMicros: 4000}})
		go func() {
			defer conn.Close()
			for {
				var m wire.ToWorker
				if wire.ReadJSON(conn, &m, wire.JSONLimit) != nil {
					return
				}
				switch {
				case m.Members != nil:
					mu.Lock()
					hangUp := members == nil && spec.Args == "hang-up"
					members = m.Members
					mu.Unlock()
					if hangUp {
						return
					}
					if spec.Args == "exit" {
						note(dir, wire.WorkerConsoleFile, "bye\n")
						note(dir, wire.WorkerOutputFile, "1\n2\n3\n")
						_ = wire.WriteJSON(conn, wire.FromWorker{Ended: &wire.WorkerEnded{State: "exited", ExitStatus: 7, Reason: "the guest said so"}})
					}
				case m.PageMap != nil:
					n := (m.PageMap.Pages + m.PageMap.PagesPerRegion - 1) / m.PageMap.PagesPerRegion
					held := make([]uint32, n)
					held[spec.Part] = 5
					_ = wire.WriteJSON(conn, wire.FromWorker{PageMap: &wire.WorkerPageMap{Token: m.PageMap.Token, Shared: make([]uint32, n), Modified: held}})
				case m.Lease != nil:
					note(dir, "lease", fmt.Sprintln(int64(m.Lease.UntilBootMicros)))
				case m.Stop != nil && spec.Args != "stubborn":
					note(dir, "stopped", m.Stop.Reason)
					os.Exit(0)
				}
			}
		}()
	}
}

func note(dir, name, text string) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, _ = f.WriteString(text)
		_ = f.Close()
	}
}

func spec(vm ident.VMID, inc ident.Incarnation, args string) wire.WorkerSpec {
	return wire.WorkerSpec{ClusterID: "c", Server: 1, Incarnation: inc, VM: vm, Name: "v", VCPUs: 1, LocalVCPUs: []ident.VCPU{0}, MemoryBytes: ident.MiB, Args: args}
}
