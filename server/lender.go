package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// lenderProcess is the process that lends this server's memory: see worker's lender. There is one while anything is lent. Only the loop of lendings
// uses it.
type lenderProcess struct {
	s    *supervisor
	dir  string
	proc *process  // nil: none runs
	conn net.Conn  // nil: not connected
	mute time.Time // since when it has not answered; zero: it has
}

const (
	lenderPatience = 3 * time.Second  // for one answer
	lenderMute     = 15 * time.Second // without any
)

// hung tells whether a lender runs that has not answered for long. Those who borrow there may wait for it.
func (p *lenderProcess) hung() bool {
	return p.alive() && !p.mute.IsZero() && time.Since(p.mute) > lenderMute
}

func newLenderProcess(s *supervisor) *lenderProcess {
	return &lenderProcess{s: s, dir: filepath.Join(s.dir, wire.WorkerLenderDir)}
}

// alive tells whether a lender runs. If one has just ended it is forgotten.
func (p *lenderProcess) alive() bool {
	if p.proc != nil && p.proc.gone() {
		p.forget()
	}
	return p.proc != nil
}

func (p *lenderProcess) forget() {
	p.hangUp()
	if p.proc != nil {
		p.proc.Close()
	}
	p.proc, p.mute = nil, time.Time{}
}

func (p *lenderProcess) hangUp() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// adopt finds the lender that an earlier serve of this incarnation left. One of a former incarnation is ended: whoever borrowed there is lost.
func (p *lenderProcess) adopt(inc ident.Incarnation) error {
	own, err := p.s.ownProcesses()
	if err != nil {
		return err
	}
	for _, o := range own {
		spec := readSpec(o.dir)
		if !spec.Lends || p.proc != nil {
			o.Close()
			continue
		}
		if spec.Incarnation != inc {
			_ = o.signal(unix.SIGKILL)
			_ = o.wait(p.s.ctx)
			o.Close()
			continue
		}
		p.proc = o.process
	}
	return nil
}

// start starts a lender if none runs, for as much memory as its server has at most.
func (p *lenderProcess) start(spec wire.WorkerSpec, memory ident.Bytes) error {
	if p.alive() {
		return nil
	}
	spec.Lends, spec.ListenHost, spec.IdleSleep = true, p.s.listenHost, p.s.idleSleep
	p.s.secure(&spec)
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create the lender's directory: %w", err)
	}
	if err := writeSpec(p.dir, &spec); err != nil {
		return err
	}
	if err := p.s.giveDir(p.dir); err != nil {
		return err
	}
	cmd, proc, err := p.s.spawn("lender", p.dir, lenderLimits(memory))
	if err != nil {
		return err
	}
	p.proc = proc
	go func() {
		_ = cmd.Wait()
		p.s.leaveGroup(p.dir)
	}()
	return nil
}

// end ends it.
func (p *lenderProcess) end() {
	if p.alive() {
		_ = p.proc.signal(unix.SIGKILL)
		_ = p.proc.wait(p.s.ctx)
	}
	p.forget()
}

// exchange says one thing to the lender and returns its answer.
func (p *lenderProcess) exchange(ctx context.Context, m wire.ToLender) (wire.FromLender, error) {
	var answer wire.FromLender
	ctx, cancel := context.WithTimeout(ctx, lenderPatience)
	defer cancel()
	if !p.alive() {
		return answer, errGone
	}
	err := p.converse(ctx, &m, &answer)
	switch {
	case err != nil:
		p.hangUp()
		if p.mute.IsZero() {
			p.mute = time.Now()
		}
		return answer, err
	case answer.Error != "":
		err = errors.New(answer.Error)
	}
	p.mute = time.Time{}
	return answer, err
}

func (p *lenderProcess) converse(ctx context.Context, m *wire.ToLender, answer *wire.FromLender) (err error) {
	if p.conn == nil {
		if p.conn, err = dialWorker(ctx, p.proc, p.dir); err != nil {
			p.conn = nil
			return err
		}
	}
	_ = p.conn.SetDeadline(time.Now().Add(lenderPatience))
	if err := wire.WriteJSON(p.conn, m); err != nil {
		return err
	}
	return wire.ReadJSON(p.conn, answer, wire.JSONLimit)
}
