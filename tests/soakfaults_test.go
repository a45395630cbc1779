package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/local"
)

// What a soak does with SOAK_FAULTS, a list of kinds with commas between them:
//
//	kill    a worker, all of a server's, its serve process, or all of them end
//	stop    the same stand still, for up to six seconds: longer than a lease, and than a worker may say nothing
//	cut     a server is off the network, or cannot send to another, or only its workers cannot reach another's; needs root
//	pair    two of these on two servers at the same moment
//	during  one of these in the middle of a command
//
// SOAK_PAYLOAD is the file of one more kind of guest, which ends with status 0 if all is well; its argument is how long that takes, in some unit from 1 to 3000.
const soakAllFaults = "kill,stop,cut,pair,during"

var soakPayload = os.Getenv("SOAK_PAYLOAD")

// widen has a soak commit the faults of these kinds. Those that it cannot commit here are left out.
func (s *soak) widen(kinds string) {
	if kinds == "" {
		return
	}
	if kinds == "all" {
		kinds = soakAllFaults
	}
	s.faults = strings.Split(kinds, ",")
	if slices.Contains(s.faults, "cut") {
		s.net = newNamespaces(s.t, len(s.session.Cluster.Servers))
		s.net.house(&s.chaos)
	}
}

// fault chooses a fault of a kind.
func (s *soak) fault(kind string) func() {
	servers := s.session.Cluster.Servers
	i := s.rng.IntN(len(servers))
	j := (i + 1 + s.rng.IntN(len(servers)-1)) % len(servers)
	n, d := s.rng.IntN(1000), time.Duration(s.rng.IntN(6000))*time.Millisecond
	if d > 2*time.Second && n%3 > 0 {
		d /= 8
	}
	simple := func(k int, kind string) func() {
		switch kind {
		case "stop":
			return func() { s.stop(servers[k].Name, n, d) }
		case "cut":
			return func() { s.sever(k, (k+i+1)%len(servers), n, d) }
		}
		return func() { s.kill(servers[k].Name, n) }
	}
	var kinds []string
	for _, k := range s.faults {
		if k != "pair" && k != "during" {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) == 0 {
		kinds = []string{"kill"}
	}
	draw := func() string { return kinds[s.rng.IntN(len(kinds))] }
	switch kind {
	case "pair":
		one, other := simple(i, draw()), simple(j, draw())
		return func() { both(one, other) }
	case "during":
		act, then, after := s.pick(0), simple(i, draw()), time.Duration(s.rng.IntN(400))*time.Millisecond
		return func() { both(act, func() { s.pass(after); then() }) }
	}
	return simple(i, kind)
}

func both(one, other func()) {
	done := make(chan struct{})
	go func() { one(); close(done) }()
	other()
	<-done
}

// victims are processes of a server, as kill has them: one worker, all of them, the serve process, or everything.
func (s *soak) victims(server string, n int) []local.Member {
	members, err := local.Find(s.dir)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	members = slices.DeleteFunc(members, func(m local.Member) bool {
		return m.Server != server || n%4 < 2 && m.Kind != local.KindWorker || n%4 == 2 && m.Kind != local.KindServe
	})
	if n%4 == 0 && len(members) > 1 {
		members = members[:1]
	}
	s.mu.Lock()
	s.kills++
	s.mu.Unlock()
	return members
}

// stop has processes of a server stand still.
func (s *soak) stop(server string, n int, d time.Duration) {
	members := s.victims(server, n)
	for _, m := range members {
		_ = syscall.Kill(m.PID, syscall.SIGSTOP)
	}
	s.pass(d)
	for _, m := range members {
		if m.Alive() {
			_ = syscall.Kill(m.PID, syscall.SIGCONT)
		}
	}
	if n%4 >= 2 { // it may have been taken for hung, and ended
		s.pass(100 * time.Millisecond)
		s.startAgain(server)
	}
}

// sever cuts a server off, keeps it from sending to another, or keeps the two servers' workers apart, for a time.
func (s *soak) sever(i, j, n int, d time.Duration) {
	if i == j {
		j = (i + 1) % s.net.n
	}
	s.mu.Lock()
	s.kills++
	s.mu.Unlock()
	var errs []error
	do := func(off bool) {
		switch n % 3 {
		case 0:
			errs = append(errs, s.net.setPort(i, off))
		case 1:
			errs = append(errs, s.net.setRoute(i, j, off))
		default:
			errs = append(errs, s.net.setRule(i, j, off), s.net.setRule(j, i, off))
		}
	}
	do(true)
	s.pass(d)
	do(false)
	for _, err := range errs {
		if err != nil && !strings.Contains(err.Error(), "exist") && !strings.Contains(err.Error(), "No such") { // two cuts of the same may overlap
			s.t.Error(err)
		}
	}
}

// startAgain starts a server's serve process if there is none.
func (s *soak) startAgain(server string) {
	var err error
	if s.net == nil {
		_, err = local.StartServer(s.dir, server, program)
	} else {
		err = s.net.startIn(&s.chaos, slices.IndexFunc(s.session.Cluster.Servers, func(m local.Server) bool { return m.Name == server }))
	}
	if err != nil && !strings.Contains(err.Error(), "runs already") {
		s.t.Errorf("starting %s again: %v", server, err)
	}
}

// soakSlow is what a command or a rest at the end may take without being told of.
const soakSlow = 20 * time.Second

// slow tells of what took long.
func (s *soak) slow(what string, since time.Time) {
	if took := time.Since(since); took > soakSlow {
		s.t.Logf("%s took %v", what, took.Round(time.Millisecond))
	}
}

// complaints tells what servers have logged as errors: nothing of that is a failure by itself.
func (s *soak) complaints() {
	for _, server := range s.session.Cluster.Servers {
		raw, err := os.ReadFile(server.Log)
		if err != nil {
			s.t.Error(err)
		}
		for _, line := range strings.Split(string(raw), "\n") {
			if strings.Contains(line, "panic:") || strings.Contains(line, "fatal error") {
				s.t.Errorf("%s: %s", server.Name, line)
			} else if strings.Contains(line, " ERR ") || strings.Contains(line, "another one is started") {
				s.t.Logf("%s: %s", server.Name, line)
			}
		}
	}
}

// wideKind is what a VM runs that only a soak with faults has: disks, more than one replica, parts in three cells, damage that is only seen when it is touched.
func (s *soak) wideKind() []string {
	count := []string{"--payload", "count", "--args", fmt.Sprint(100+s.rng.IntN(1500), " 100"), "--vcpus", "1"}
	s.disks++
	disk := fmt.Sprintf("disk-%d,size=1MiB", s.disks)
	kinds := 7
	if soakPayload != "" {
		kinds = 11
	}
	switch kind := s.rng.IntN(kinds); kind {
	case 7, 8, 9, 10:
		own := []string{"--payload", soakPayload, "--args", fmt.Sprint(1 + s.rng.IntN(3000)), "--vcpus", fmt.Sprint(1 + s.rng.IntN(3))}
		return append(own, [][]string{{}, {"--protect", "replica"}, {"--span", "a,b,c", "--vcpus", "3"}, {"--span", "a,c", "--vcpus", "2", "--protect", "replica"}}[kind-7]...)
	case 0:
		return append(count, "--protect", "replica:2")
	case 1:
		return []string{"--payload", "lock", "--args", fmt.Sprint(1 + s.rng.IntN(200)), "--vcpus", "3", "--span", "a,b,c", "--on-loss", "touch"}
	case 2:
		return []string{"--payload", "journal", "--args", fmt.Sprint(50+s.rng.IntN(500), " 100 64"), "--vcpus", "1", "--disk", disk + ",mirror=1", "--protect", "replica"}
	case 3:
		return []string{"--payload", "journal", "--args", fmt.Sprint(50+s.rng.IntN(500), " 100 64"), "--vcpus", "1", "--disk", disk + ",mirror=1"}
	case 4:
		return []string{"--payload", "walk", "--args", fmt.Sprint(1+s.rng.IntN(8), " 2"), "--vcpus", "2", "--span", "b,c", "--protect", "replica"}
	case 5:
		return append(count, "--restart", "always")
	}
	return []string{"--payload", "litmus", "--args", fmt.Sprint(50 + s.rng.IntN(500)), "--vcpus", "4", "--span", "a,c"}
}

// saveAndRestore writes a VM to a file and has it go on from there under another name.
func (s *soak) saveAndRestore(vm string) {
	s.expect(vm)
	s.mu.Lock()
	s.saves++
	file, name := filepath.Join(s.dir, fmt.Sprintf("saved-%d", s.saves)), fmt.Sprintf("again-%d", s.saves)
	s.mu.Unlock()
	saved := s.command("vm", "save", vm, file)
	if _, err := os.Stat(file); saved && err != nil {
		s.t.Errorf("VM %s was saved, and there is no file: %v", vm, err)
	}
	if saved && !s.command("vm", "restore", name, file, "--timeout", "30s") {
		s.expect(name)
	}
	_ = os.Remove(file)
}

// noDirectories removes the disks that VMs had, and demands that servers keep nothing of disks and VMs that were removed.
func (s *soak) noDirectories() {
	s.until(soakSettle, "disks are removed", func(ctx context.Context) error {
		return s.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			r, err := svc.ListDisks(ctx, &api.ListDisksRequest{})
			for _, d := range r.GetDisks() {
				if _, err := svc.RemoveDisk(ctx, &api.RemoveDiskRequest{Name: d.GetName()}); err != nil {
					return err
				}
			}
			return err
		})
	})
	s.until(soakSettle, "no directory is left", func(_ context.Context) error {
		for _, of := range []string{"workers/[0-9]*", "disks/*", "blobs/*"} {
			if left, err := filepath.Glob(filepath.Join(s.dir, "*", of)); err != nil || len(left) > 0 {
				return errors.Join(err, fmt.Errorf("there are %v", left))
			}
		}
		return nil
	})
}
