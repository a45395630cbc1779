package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"

	"github.com/cellvisor/cellvisor/tui/fake"
)

// ConsoleSettings say how the console is measured.
type ConsoleSettings struct {
	VMs     int `json:"vms"`
	Updates int `json:"updates_per_second"` // each changes every VM
	Seconds int `json:"seconds"`            // for which its CPU time is measured
	Keys    int `json:"keys"`               // that are pressed, one after another
}

// Check tells whether the settings make sense.
func (s ConsoleSettings) Check() error {
	switch {
	case s.VMs < 100 || s.VMs > 9000:
		return fmt.Errorf("--vms %d must be from 100, which fill a screen, to 9000", s.VMs)
	case s.Updates < 1 || s.Updates > 100:
		return fmt.Errorf("--updates %d must be from 1 to 100 a second", s.Updates)
	case s.Seconds < 1 || s.Seconds > 600:
		return fmt.Errorf("--seconds %d must be from 1 to 600", s.Seconds)
	case s.Keys < 2 || s.Keys > 10000:
		return fmt.Errorf("--keys %d must be from 2 to 10000", s.Keys)
	}
	return nil
}

// What the console may cost at 200 VMs and ten updates a second.
const (
	consoleCPUPercent = 5
	consoleKeyMillis  = 50
)

// ConsoleReport is what the console costs. CPU time is that of its process alone, in percent of one core.
type ConsoleReport struct {
	Host     Host            `json:"host"`
	Settings ConsoleSettings `json:"settings"`

	OverviewPercent float64 `json:"overview_cpu_percent"` // with the overview on the screen
	VMsPercent      float64 `json:"vms_cpu_percent"`      // with the list of VMs
	UpdatesSent     int     `json:"updates_sent"`

	KeyMedianMs float64 `json:"key_median_ms"` // from a key to the first byte of its answer on the terminal, updates going on
	KeyP99Ms    float64 `json:"key_p99_ms"`
	KeyMaxMs    float64 `json:"key_max_ms"`

	BoundPercent float64 `json:"bound_cpu_percent"`
	BoundKeyMs   float64 `json:"bound_key_ms"`
	Met          bool    `json:"met"`
}

// Console measures the real console, a process in a terminal of 160 columns and 50 rows, before an API that streams changes of VMs that exist nowhere
// else. exe is the program, "" for this one.
func Console(ctx context.Context, exe string, set ConsoleSettings, say func(string)) (rep ConsoleReport, err error) {
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = ConsoleReport{Host: ThisHost(), Settings: set, BoundPercent: consoleCPUPercent, BoundKeyMs: consoleKeyMillis}
	dir, err := os.MkdirTemp("", "cvb-")
	if err != nil {
		return rep, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return rep, err
	}
	server := fake.Serve(fake.Large(set.VMs), l)
	defer server.Stop()
	s := &sitting{last: fmt.Sprintf("vm-%04d", set.VMs-1)}
	if err := s.sit(ctx, exe, "unix://"+socket); err != nil {
		return rep, err
	}
	defer s.leave()
	say("the console begins")
	if err := s.await(ctx, 0, "vm-0000"); err != nil {
		return rep, err
	}
	stop := change(ctx, server, set.Updates)
	say("the overview")
	if rep.OverviewPercent, err = s.cost(ctx, set.Seconds); err != nil {
		return rep, err
	}
	if err := s.press(ctx, "4", "overview › VMs"); err != nil {
		return rep, err
	}
	say("the list of VMs")
	if rep.VMsPercent, err = s.cost(ctx, set.Seconds); err != nil {
		return rep, err
	}
	say("keys")
	millis, err := s.keys(ctx, set.Keys)
	rep.UpdatesSent = stop()
	if err != nil {
		return rep, err
	}
	rep.KeyMedianMs, rep.KeyP99Ms, rep.KeyMaxMs = millis[len(millis)/2], millis[min(len(millis)*99/100, len(millis)-1)], millis[len(millis)-1]
	rep.Met = rep.OverviewPercent < rep.BoundPercent && rep.VMsPercent < rep.BoundPercent && rep.KeyP99Ms < rep.BoundKeyMs
	return rep, nil
}

// change changes every VM so many times a second until the returned function is called, which tells how often.
func change(ctx context.Context, server *fake.Server, perSecond int) (stop func() int) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	n := 0
	running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case at := <-tick.C:
				n++
				server.Change(func(s *fake.State) {
					for _, vm := range s.VMs {
						vm.State = vm.State%6 + 1
					}
					// What is drawn of the events must not grow for ever.
					s.Event("vm.running", "", "", "vm-0050", at.String())
				})
			}
		}
	})
	return func() int {
		cancel()
		running.Wait()
		return n
	}
}

// sitting is a console in its terminal, and a person before it.
type sitting struct {
	last   string // the name of the last VM
	cmd    *exec.Cmd
	person *os.File

	mu    sync.Mutex
	out   []byte        // protected by mu; what it has drawn, from offset base on
	base  int           // protected by mu
	fresh chan struct{} // something was drawn
	ended chan error
}

// keptBytes bounds what is kept of what was drawn.
const keptBytes = 1 << 20

func (s *sitting) sit(ctx context.Context, exe, addr string) (err error) {
	s.cmd = exec.CommandContext(ctx, exe, "top", "--addr", addr)
	s.cmd.Env = append(os.Environ(), "TERM=xterm-256color", "NO_COLOR=")
	if s.person, err = pty.StartWithSize(s.cmd, &pty.Winsize{Cols: 160, Rows: 50}); err != nil {
		return err
	}
	s.fresh, s.ended = make(chan struct{}, 1), make(chan error, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := s.person.Read(buf)
			if err != nil { // the program has ended
				s.ended <- s.cmd.Wait()
				return
			}
			s.mu.Lock()
			s.out = append(s.out, buf[:n]...)
			if over := len(s.out) - keptBytes; over > 0 {
				s.out = append(s.out[:0], s.out[over:]...)
				s.base += over
			}
			s.mu.Unlock()
			select {
			case s.fresh <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

func (s *sitting) leave() {
	_, _ = s.person.WriteString("\x03")
	select {
	case <-s.ended:
	case <-time.After(5 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s.person.Close()
}

// drawn is the offset behind all that was drawn.
func (s *sitting) drawn() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.base + len(s.out)
}

// consolePatience bounds every wait for the console.
const consolePatience = 20 * time.Second

// await waits until a text was drawn beyond an offset.
func (s *sitting) await(ctx context.Context, from int, text string) error {
	deadline := time.NewTimer(consolePatience)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		found := bytes.Contains(s.out[max(from-s.base, 0):], []byte(text))
		s.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-s.fresh:
		case err := <-s.ended:
			s.ended <- err
			return errors.Join(errors.New("the console has ended"), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("the console does not draw %q", text)
		}
	}
}

// press presses a key and waits for what comes of it.
func (s *sitting) press(ctx context.Context, key, text string) error {
	from := s.drawn()
	if _, err := s.person.WriteString(key); err != nil {
		return err
	}
	return s.await(ctx, from, text)
}

// keys goes to the last VM and back to the first, neither of which is drawn before, and returns how long each took, in milliseconds, sorted.
func (s *sitting) keys(ctx context.Context, n int) ([]float64, error) {
	rng := rand.New(rand.NewPCG(1, 1))
	var millis []float64
	for i := range n {
		key, text := "G", s.last
		if i%2 == 1 {
			key, text = "g", "vm-0000"
		}
		select {
		case <-time.After(time.Duration(50+rng.IntN(150)) * time.Millisecond): // at any moment between two updates
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		began := time.Now()
		if err := s.press(ctx, key, text); err != nil {
			return nil, err
		}
		millis = append(millis, round3(float64(time.Since(began).Microseconds())/1000))
	}
	slices.Sort(millis)
	return millis, nil
}

// cost measures the CPU time of the console, in percent of a core.
func (s *sitting) cost(ctx context.Context, seconds int) (float64, error) {
	before, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(time.Duration(seconds) * time.Second):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := cpuTime(s.cmd.Process.Pid)
	return round3(100 * (after - before).Seconds() / time.Since(began).Seconds()), err
}

// cpuTime is the CPU time that a process has used: the first field of schedstat of each of its threads, in nanoseconds. Threads of a Go program do
// not end.
func cpuTime(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("the CPU time of process %d is not known: %w", pid, errors.Join(err, os.ErrNotExist))
	}
	var sum int64
	for _, path := range threads {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(raw), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += n
	}
	return time.Duration(sum), nil
}
