package worker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// A lender is the process that holds pages for VMs of other servers in this server's memory. It is no part of any VM: what it holds it does not look
// at, and gives it back to whoever knows the VM's secret. Serve tells it all that it is to hold; what is missing in that is given up.
//
//	serve --ToLender--> lender <--LendPut, LendGet, LendCut-- a borrower's worker, on a plane between the two
//	      <-FromLender-
//
// It outlives its serve as workers do, since VMs depend on it.
type lender struct {
	spec     wire.WorkerSpec
	log      zerolog.Logger
	listener *net.UnixListener
	awake    awake

	mu    sync.Mutex // protects all below; of conversations, not of loans
	desks []*desk
	until ident.Micros // serve's lease
	heard time.Time
}

// desk is a place for one loan. Its port and its file are there from the start: a jailed process can make neither.
type desk struct {
	port *net.TCPListener
	disk *os.File
	loan *loan // nil: it is free
}

// maxDesks is to how many parts a server lends at a time.
const maxDesks = 32

func runLender(dir string, spec wire.WorkerSpec, log zerolog.Logger) error {
	l := &lender{spec: spec, log: log.With().Str("server", string(spec.ServerName)).Logger(), heard: time.Now()}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := os.Remove(wire.WorkerCtlSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	var err error
	if l.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: wire.WorkerCtlSocket, Net: "unix"}); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	l.awake.watch(spec.IdleSleep)
	for range maxDesks {
		d, err := newDesk(dir, spec.ListenHost)
		if err != nil {
			return err
		}
		l.desks = append(l.desks, d)
	}
	if j := spec.Jail; j != nil {
		if err := beJailed(j, false); err != nil {
			return err
		}
	}
	go l.leaveWhenForgotten()
	for {
		conn, err := l.listener.AcceptUnix()
		if err != nil {
			return nil
		}
		if err := fromServe(conn); err != nil {
			l.log.Warn().Err(err).Msg("a stranger at the control socket")
			conn.Close()
			continue
		}
		go l.converse(conn)
	}
}

func newDesk(dir, host string) (*desk, error) {
	port, err := link.ListenPort(host)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, wire.WorkerPagingFile)
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("paging file: %w", err)
	}
	return &desk{port: port.(*net.TCPListener), disk: disk}, os.Remove(path)
}

// leaveWhenForgotten ends the process when serve has not spoken for long, and its lease has lapsed: then the VMs that borrow here are lost.
func (l *lender) leaveWhenForgotten() {
	for range time.Tick(statsEvery) {
		l.mu.Lock()
		forgotten := time.Since(l.heard) > orphanAfter && bootMicros() > l.until
		l.mu.Unlock()
		if forgotten {
			l.log.Error().Msg("no serve has spoken to this lender for long: ending")
			l.listener.Close()
			return
		}
	}
}

// converse answers one serve.
func (l *lender) converse(conn net.Conn) {
	defer conn.Close()
	for {
		var m wire.ToLender
		if wire.ReadJSON(conn, &m, wire.JSONLimit) != nil {
			return
		}
		answer := l.take(m)
		if wire.WriteJSON(conn, &answer) != nil {
			return
		}
	}
}

// take carries out what serve says.
func (l *lender) take(m wire.ToLender) (out wire.FromLender) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard, l.until = time.Now(), max(l.until, m.UntilBootMicros)
	if !m.Ask {
		for _, d := range l.desks {
			if d.loan != nil && !slices.ContainsFunc(m.Loans, d.loan.is) {
				d.loan.end()
				d.loan = nil
			}
		}
		for _, want := range m.Loans {
			if err := l.lend(want); err != nil {
				out.Error = err.Error()
			}
		}
	}
	for _, d := range l.desks {
		if d.loan != nil {
			out.Loans = append(out.Loans, d.loan.state())
		}
	}
	return out
}

// lend makes a loan what serve says it is. It requires mu.
func (l *lender) lend(want wire.LenderLoan) error {
	i := slices.IndexFunc(l.desks, func(d *desk) bool { return d.loan != nil && d.loan.is(want) })
	if i >= 0 {
		return l.desks[i].loan.change(want)
	}
	i = slices.IndexFunc(l.desks, func(d *desk) bool { return d.loan == nil })
	if i < 0 {
		return fmt.Errorf("this server lends memory to %d parts already, which is the most", maxDesks)
	}
	loan, err := l.open(l.desks[i], want)
	if err == nil {
		l.desks[i].loan = loan
	}
	return err
}
