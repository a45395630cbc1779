package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// Options say how a cluster is started.
type Options struct {
	Dir   string // as Abs made it
	Shape Shape
	Exe   string // the program; empty means the running one
}

// Session is a cluster whose serve processes are children of this process.
type Session struct {
	Cluster *Cluster
	exe     string
	exits   chan Exit

	mu     sync.Mutex // protects ended
	ended  map[string]Exit
	unread sync.WaitGroup // one for each goroutine that waits for a child
}

// Exit tells that a serve process of the session ended.
type Exit struct {
	Server string
	Why    string // "exit status 1", "signal: killed"
	Log    string // last lines of its log
}

// Start starts all servers of the cluster in opt.Dir, which is made if it does not exist. It returns when the processes run, not when the
// cluster is live. On an error nothing is left running.
func Start(opt Options) (*Session, error) {
	exe := opt.Exe
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	if err := claim(opt.Dir); err != nil {
		return nil, err
	}
	unlock, err := lock(opt.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := open(opt.Dir, opt.Shape)
	if err != nil {
		return nil, err
	}
	s := &Session{Cluster: c, exe: exe, exits: make(chan Exit, 4*len(c.Servers)), ended: make(map[string]Exit)}
	c.Down, c.Live = false, false
	for i := range c.Servers {
		if err := s.spawn(&c.Servers[i]); err != nil {
			s.abandon()
			return nil, err
		}
	}
	return s, c.save()
}

// abandon kills what was spawned before spawning failed.
func (s *Session) abandon() {
	for _, srv := range s.Cluster.Servers {
		if h, err := srv.Process.open(); err == nil {
			_ = h.signal(syscall.SIGKILL)
			h.close()
		}
	}
}

// spawn starts one serve process and a goroutine that waits for its end.
func (s *Session) spawn(srv *Server) error {
	cmd, err := launch(s.exe, srv)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.ended, srv.Name)
	s.mu.Unlock()
	name, log := srv.Name, srv.Log
	s.unread.Go(func() {
		err := cmd.Wait()
		e := Exit{Server: name, Why: "exit status 0", Log: Tail(log, 5)}
		if err != nil {
			e.Why = err.Error()
		}
		s.mu.Lock()
		s.ended[name] = e
		s.mu.Unlock()
		select {
		case s.exits <- e:
		default: // nobody watches any more
		}
	})
	return nil
}

// launch starts `EXE serve --config FILE` in a session of its own, so that a terminal's Ctrl-C reaches whoever supervises it and not the
// servers, and records its identity in srv.
func launch(exe string, srv *Server) (*exec.Cmd, error) {
	log, err := os.OpenFile(srv.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(exe, "serve", "--config", srv.Config)
	cmd.Dir = filepath.Dir(srv.Config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = serveEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting server %s: %w", srv.Name, err)
	}
	p, err := Identify(cmd.Process.Pid)
	if err != nil { // ended already, a zombie still has an identity
		return nil, fmt.Errorf("starting server %s: %w", srv.Name, err)
	}
	srv.Process = p
	return cmd, nil
}

// serveEnv is the environment without what points to a cluster: a server must not take itself for a client of another one.
func serveEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CELLVISOR_ADDR=") && !strings.HasPrefix(kv, "CELLVISOR_DIR=") {
			out = append(out, kv)
		}
	}
	return out
}

// WaitLive waits until every server says that it is in the view and that the view holds them all. report is told how many do, whenever that
// changes. A server that ends meanwhile is an error that carries the end of its log.
func (s *Session) WaitLive(ctx context.Context, report func(live, total int)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	live := -1
	var said string
	for {
		n, why := s.liveCount(ctx)
		if n != live {
			live = n
			report(live, len(s.Cluster.Servers))
		}
		if live == len(s.Cluster.Servers) {
			_, err := update(s.Cluster.Dir, func(c *Cluster) error { c.Live = true; return nil })
			return err
		}
		if why != "" {
			said = why
		}
		if e, ok := s.anyEnded(); ok {
			return fmt.Errorf("server %s ended before the cluster was live (%s); the end of its log %s:\n%s",
				e.Server, e.Why, s.Cluster.Server(e.Server).Log, e.Log)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("only %d of %d servers came alive in time (%s); their logs are %s/*.log: %w",
					live, len(s.Cluster.Servers), said, s.Cluster.Dir, ctx.Err())
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s *Session) anyEnded() (Exit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, srv := range s.Cluster.Servers {
		if e, ok := s.ended[srv.Name]; ok {
			return e, true
		}
	}
	return Exit{}, false
}

// liveCount asks every server, at once, how it sees the cluster.
func (s *Session) liveCount(ctx context.Context) (live int, why string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	total := uint32(len(s.Cluster.Servers))
	whys := make([]string, total)
	var wg sync.WaitGroup
	for i, srv := range s.Cluster.Servers {
		wg.Go(func() { whys[i] = notLive(ctx, srv, total) })
	}
	wg.Wait()
	for i, w := range whys {
		if w == "" {
			live++
		} else if why == "" {
			why = s.Cluster.Servers[i].Name + ": " + w
		}
	}
	return live, why
}

// notLive returns why a server is not live yet, "" if it is.
func notLive(ctx context.Context, srv Server, total uint32) string {
	if _, err := os.Stat(strings.TrimPrefix(srv.API, "unix://")); err != nil {
		return "its API socket is not there yet"
	}
	c, err := api.Dial(ctx, srv.API)
	if err != nil {
		return api.Message(err)
	}
	defer c.Close()
	st, err := c.API().Status(ctx, &api.StatusRequest{})
	switch {
	case err != nil:
		return api.Message(err)
	case st.GetServerState() != api.ServerState_SERVER_STATE_LIVE:
		return "it is " + st.GetServerState().Word()
	case !st.GetQuorum():
		return "it has no quorum"
	case st.GetServersLive() < total:
		return fmt.Sprintf("it sees %d of %d servers live", st.GetServersLive(), total)
	}
	return ""
}

// Watch supervises the session until ctx ends or the cluster is taken down by someone else, which it tells by returning nil. It reports every
// server that ends; with respawn it starts it again. If all servers have died it returns an error.
func (s *Session) Watch(ctx context.Context, respawn bool, report func(Exit)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-s.exits:
			c, err := Load(s.Cluster.Dir)
			if err != nil || c.Down {
				return nil
			}
			report(e)
			if respawn {
				if err := s.respawn(ctx, e.Server); err != nil {
					return err
				}
			} else if members, err := Find(c.Dir); err == nil && !anyServe(members) {
				return fmt.Errorf("all servers of the cluster in %s have ended; their logs are %s/*.log", c.Dir, c.Dir)
			}
		}
	}
}

func anyServe(members []Member) bool {
	for _, m := range members {
		if m.Kind == KindServe {
			return true
		}
	}
	return false
}

// respawnPause keeps a server that dies at once from being started in a tight loop.
const respawnPause = 500 * time.Millisecond

func (s *Session) respawn(ctx context.Context, name string) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(respawnPause):
	}
	_, err := update(s.Cluster.Dir, func(c *Cluster) error {
		srv := c.Server(name)
		if c.Down || srv == nil || srv.Process.Alive() {
			return nil
		}
		return s.spawn(srv)
	})
	return err
}

// StartServer starts the process of one server of a local cluster again, on the same data. It is an error if it runs.
func StartServer(dir, name, exe string) (Process, error) {
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return Process{}, err
		}
	}
	var started Process
	_, err := update(dir, func(c *Cluster) error {
		srv := c.Server(name)
		if srv == nil {
			return fmt.Errorf("the cluster in %s has no server %q; it has %s", dir, name, strings.Join(c.names(), ", "))
		}
		members, err := Find(dir)
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Kind == KindServe && m.Server == name {
				return fmt.Errorf("server %s runs already, as process %d", name, m.PID)
			}
		}
		c.Down = false
		cmd, err := launch(exe, srv)
		if err != nil {
			return err
		}
		started = srv.Process
		return cmd.Process.Release()
	})
	return started, err
}

// Answers waits until a server that StartServer started answers, or ctx ends, which is no error: a server with much to read takes its time. One that ends instead,
// because its files are damaged or its disk is full, is an error with the end of its log.
func Answers(ctx context.Context, dir, name string, p Process) error {
	c, err := Load(dir)
	if err != nil {
		return err
	}
	srv := c.Server(name)
	if srv == nil {
		return fmt.Errorf("the cluster in %s has no server %q any more", dir, name)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if !p.Alive() {
			return fmt.Errorf("server %s ended as soon as it was started; the end of its log %s:\n%s", name, srv.Log, Tail(srv.Log, 1))
		}
		if srv.answers(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// answers tells whether a server says anything of itself.
func (s *Server) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := api.Dial(ctx, s.API)
	if err != nil {
		return false
	}
	defer c.Close()
	_, err = c.API().Status(ctx, &api.StatusRequest{})
	return err == nil
}

func (c *Cluster) names() []string {
	var out []string
	for _, s := range c.Servers {
		out = append(out, s.Name)
	}
	return out
}

// Tail returns the last lines of a file, for messages.
func Tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const window = 8 << 10
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-window), io.SeekStart)
	}
	raw, _ := io.ReadAll(io.LimitReader(f, window))
	all := bytes.Split(bytes.TrimRight(raw, "\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
