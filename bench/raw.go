package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/link"
)

// RawEchoArgs are the arguments with which the program runs ServeRawEcho.
var RawEchoArgs = []string{"bench", "raw-echo"}

// ServeRawEcho answers raw requests until in ends. It writes its address to out, as a line.
func ServeRawEcho(in io.Reader, out io.Writer) error {
	e, err := link.ListenRawEcho("127.0.0.1")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, e.Addr()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err // the process ends, and its threads with it
}

// echo is a process that answers raw requests, as far away as a worker is from another one.
type echo struct {
	cmd   *exec.Cmd
	stdin io.Closer
	addr  string
}

func startEcho(exe string) (*echo, error) {
	cmd := exec.Command(exe, RawEchoArgs...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	e := &echo{cmd: cmd, stdin: stdin, addr: strings.TrimSpace(line)}
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("starting the raw echo: %w", err)
	}
	return e, nil
}

func (e *echo) stop() {
	e.stdin.Close()
	_ = e.cmd.Wait()
}

// measure times n round trips, in nanoseconds, after as many as a tenth of them to warm up.
func (e *echo) measure(ctx context.Context, n int) ([]uint32, error) {
	type result struct {
		ns  []uint32
		err error
	}
	done := make(chan result, 1)
	go func() { // a thread of its own, which the client keeps and which ends with it
		var r result
		defer func() { done <- r }()
		c, err := link.DialRawEcho(ctx, e.addr)
		if err != nil {
			r.err = err
			return
		}
		defer c.Close()
		for i := range n + n/10 {
			start := time.Now()
			if r.err = c.Do(); r.err != nil {
				return
			}
			if i >= n/10 {
				r.ns = append(r.ns, uint32(min(time.Since(start), time.Second)))
			}
		}
	}()
	r := <-done
	return r.ns, r.err
}
