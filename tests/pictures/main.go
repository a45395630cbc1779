// Command pictures makes the pictures of the console in docs/pictures: it starts a real cluster with real VMs, shows the console in a terminal of
// tmux, presses keys, and draws what is on the screen as SVG. `make pictures` runs it.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/tests/terminal"
)

const (
	columns, rows = 120, 34
	patience      = 30 * time.Second
	settled       = 5 // looks at a screen until its values have settled
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: pictures PROGRAM DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

// stage is a cluster and a terminal before it.
type stage struct {
	*terminal.Terminal
	program, dir, into string
}

func run(program, into string) (err error) {
	dir, err := os.MkdirTemp("/dev/shm", "cvp-")
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	s := &stage{program: program, dir: dir, into: into}
	defer func() {
		if s.Terminal != nil {
			s.Close()
		}
		_, derr := s.cellvisor("down", "--purge")
		if err == nil {
			err = derr
		}
		_ = os.RemoveAll(dir)
	}()
	for _, line := range []string{
		"up --detach --slots 2 --memory 512MiB",
		"vm run web --payload dirty --vcpus 2 --span a,b --protect replica --memory 64MiB --args=40_4000_0",
		"vm run batch --payload lock --vcpus 2 --span a --args=100000000",
		"vm run tick --payload count --vcpus 1 --span c --args=0_100",
		"vm run first --payload hello --vcpus 2 --span b,c",
	} {
		words := strings.Fields(line)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "_", " ")
		}
		if out, err := s.cellvisor(words...); err != nil {
			return fmt.Errorf("%s: %w\n%s", line, err, out)
		}
	}
	if s.Terminal, err = terminal.Start(dir, columns, rows, append(s.env(), "NO_COLOR="), "TERM=xterm-256color "+program+" top"); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		keys []string
		want string
	}{
		{"overview", nil, "safe"},
		{"slices", []string{"3", "t"}, "slot 0"},
		{"pages", []string{"4", "G", "m"}, "to write"},
		{"load", []string{"8"}, "Load tree"},
		{"stop", []string{"4", "G", "s"}, "Stop VM web?"},
	} {
		if err := s.picture(p.name, p.keys, p.want); err != nil {
			return err
		}
	}
	return nil
}

// env says which cluster is meant.
func (s *stage) env() []string { return []string{"CELLVISOR_DIR=" + s.dir, "CELLVISOR_ADDR="} }

func (s *stage) cellvisor(args ...string) (string, error) {
	cmd := exec.Command(s.program, args...)
	cmd.Env = append(os.Environ(), s.env()...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// picture presses keys, waits for what is wanted and for the values to settle, and draws the screen.
func (s *stage) picture(name string, keys []string, want string) error {
	if len(keys) > 0 {
		if err := s.Keys(keys...); err != nil {
			return err
		}
	}
	for range settled {
		if _, err := s.AwaitText(patience, want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		<-time.After(300 * time.Millisecond)
	}
	text, err := s.Painted()
	if err != nil {
		return err
	}
	if err := s.Keys("Escape"); err != nil {
		return err
	}
	if err := os.MkdirAll(s.into, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.into, name+".svg"), []byte(draw(text)), 0o644)
}
