// Package terminal runs programs in a terminal of tmux, of a server of its own, and looks at what is on the screen: for tests of the console, and for
// its pictures.
package terminal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// ErrMissing says that tmux is not installed.
var ErrMissing = errors.New("tmux is not installed")

// Terminal is one window. Its methods may be called from one goroutine at a time.
type Terminal struct {
	socket string
	env    []string
}

// sockets numbers the servers of tmux: one that was ended may take a moment to let go of its socket.
var sockets atomic.Uint32

// Start runs a line of shell in a terminal of that size. env is added to the environment; dir is where the terminal's socket lies, and must have a
// short name.
func Start(dir string, width, height int, env []string, line string) (*Terminal, error) {
	if _, err := exec.LookPath("tmux"); err != nil {
		return nil, ErrMissing
	}
	t := &Terminal{socket: filepath.Join(dir, fmt.Sprintf("tmux-%d", sockets.Add(1))), env: append(os.Environ(), env...)}
	_, err := t.Tmux("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), line)
	return t, err
}

// Close ends the terminal and what runs in it, which gets SIGHUP.
func (t *Terminal) Close() {
	_, _ = t.Tmux("kill-server") // it may have ended with its program
}

// Tmux runs one command of tmux.
func (t *Terminal) Tmux(args ...string) (string, error) {
	cmd := exec.Command("tmux", append([]string{"-u", "-S", t.socket}, args...)...)
	cmd.Env = t.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("tmux %q: %w: %s", args, err, out)
	}
	return string(out), err
}

// Keys presses keys by tmux's names: "j", "Enter", "Escape".
func (t *Terminal) Keys(keys ...string) error {
	_, err := t.Tmux(append([]string{"send-keys"}, keys...)...)
	return err
}

// Type types text as it is.
func (t *Terminal) Type(text string) error {
	_, err := t.Tmux("send-keys", "-l", text)
	return err
}

// Resize gives the window another size.
func (t *Terminal) Resize(width, height int) error {
	_, err := t.Tmux("resize-window", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height))
	return err
}

// Screen is the text on the screen, Painted the same with its escape sequences for colours and with the spaces at the ends of lines.
func (t *Terminal) Screen() (string, error)  { return t.Tmux("capture-pane", "-p") }
func (t *Terminal) Painted() (string, error) { return t.Tmux("capture-pane", "-p", "-e", "-N") }

// lookEvery is the time between two looks at the screen.
const lookEvery = 20 * time.Millisecond

// Await waits until the screen is as is wanted: wanted says what is missing, "" if nothing is.
func (t *Terminal) Await(patience time.Duration, wanted func(screen string) string) (string, error) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		screen, err := t.Screen()
		if err != nil {
			return "", err
		}
		missing := wanted(screen)
		if missing == "" {
			return screen, nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return screen, fmt.Errorf("%s; on the terminal is:\n%s", missing, screen)
		}
	}
}

// AwaitText waits until all texts are on the screen.
func (t *Terminal) AwaitText(patience time.Duration, texts ...string) (string, error) {
	return t.Await(patience, func(screen string) string {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return fmt.Sprintf("%q is missing", text)
			}
		}
		return ""
	})
}
