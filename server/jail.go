package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

// planJail decides how workers are confined.
func (s *Server) planJail() error {
	if !s.cfg.Jail {
		return nil
	}
	if err := jail.Supported(); err != nil {
		return fmt.Errorf("workers cannot be jailed here: %w; `jail = \"off\"` in the block security does without", err)
	}
	owner, err := jail.FindOwner(s.cfg.WorkerUser)
	if err != nil {
		return fmt.Errorf("worker_user: %w", err)
	}
	if os.Geteuid() != 0 {
		if s.cfg.WorkerUser != "" && int(owner.UID) != os.Geteuid() {
			return fmt.Errorf("worker_user %q: only a serve that runs as root can give its workers another user: leave it out", s.cfg.WorkerUser)
		}
		owner = jail.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	}
	s.workers.jail = &wire.WorkerJail{UID: owner.UID, GID: owner.GID}
	return nil
}

// begin starts the process that describe tells of. A jailed one is in a PID namespace of its own, in which it sees no others, if serve may make those: root with
// CAP_SYS_ADMIN may, unless the kernel has none (CONFIG_PID_NS, user.max_pid_namespaces) or a container's filter refuses.
func (s *supervisor) begin(describe func() *exec.Cmd) (*exec.Cmd, error) {
	cmd := describe()
	apart := s.jail != nil && os.Geteuid() == 0 && !s.noPIDNS.Load()
	if apart {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	err := cmd.Start()
	if !apart || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSPC) {
		return cmd, err
	}
	again := describe()
	if again.Start() != nil {
		return cmd, err // that was not the reason
	}
	if !s.noPIDNS.Swap(true) {
		s.log.Warn().Err(err).Msg("workers get no PID namespaces of their own: they are jailed without")
	}
	return again, nil
}

// openToWorkers lets workers of another user reach what they send notes to. Above it, the data directory keeps everyone else out: a worker
// is there already.
func (s *supervisor) openToWorkers(bell string) error {
	if s.jail == nil || int(s.jail.UID) == os.Geteuid() {
		return nil
	}
	return errors.Join(os.Chmod(s.dir, 0o711), os.Chmod(bell, 0o666))
}

// secure tells a worker how its traffic and the worker itself are protected.
func (s *supervisor) secure(spec *wire.WorkerSpec) {
	spec.Seal, spec.Jail = s.seal, s.jail
}

// giveDir makes a worker's directory its own, so that it can go on from there when it is no longer root.
func (s *supervisor) giveDir(dir string) error {
	if s.jail == nil || int(s.jail.UID) == os.Geteuid() {
		return nil
	}
	if err := os.Chown(dir, int(s.jail.UID), int(s.jail.GID)); err != nil {
		return fmt.Errorf("the worker's directory: %w", err)
	}
	return nil
}

// isPart tells whether an address is one at which a part of the VM serves.
func (s *Server) isPart(vm ident.VMID, addr string) bool {
	v := s.board.now().state.VM(vm)
	if v == nil || addr == "" {
		return false
	}
	for _, p := range v.Parts {
		if p.Addr == addr || p.ReplicaAddr == addr {
			return true
		}
	}
	return s.lends.shared.isLender(vm, addr)
}

const (
	maxDials     = 64 // that a worker may have under way; it has fewer peers
	dialPatience = 4 * time.Second
)

var errForeign = errors.New("that is no part of this VM")

// fetch does what a jailed worker asks for, unless it asks for too much at once.
func (s *supervisor) fetch(w *worker, patience time.Duration, do func(ctx context.Context)) {
	select {
	case w.dials <- struct{}{}:
	default:
		s.counts.refusedDials.Add(1)
		return
	}
	s.start(func() {
		defer func() { <-w.dials }()
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		defer cancel()
		do(ctx)
	})
}

// dialFor makes a connection that a jailed worker asks for, if it is to another part of its VM, and hands it over.
func (s *supervisor) dialFor(w *worker, d wire.WorkerDial) {
	s.fetch(w, dialPatience, func(ctx context.Context) {
		conn, err := net.Conn(nil), errForeign
		if s.mayDial(w.vm, d.Addr) {
			conn, err = link.DialPages(ctx, d.Addr)
		} else {
			s.counts.refusedDials.Add(1)
			s.log.Warn().Uint64("vm", uint64(w.vm)).Str("addr", d.Addr).Msg("a worker wants a connection to what is no part of its VM")
		}
		if conn != nil {
			defer conn.Close() // the worker has its own
		}
		var files []*os.File
		if tcp, ok := conn.(*net.TCPConn); ok {
			var file *os.File
			if file, err = tcp.File(); err == nil {
				defer file.Close()
				files = append(files, file)
			}
		}
		s.handOver(ctx, w, d.ID, nil, files, err)
	})
}

// diskOf returns what a VM's worker here is told about one of its disks.
func (s *Server) diskOf(vm ident.VMID, name string) (wire.WorkerDisk, bool) {
	st := s.board.now().state
	if v := st.VM(vm); v != nil {
		for _, d := range monitor.DisksOf(st, v, s.store.Identity().Server) {
			if d.Name == name {
				return d, true
			}
		}
	}
	return wire.WorkerDisk{}, false
}

// diskPatience bounds the opening of a disk.
const diskPatience = 10 * time.Second

// maxDiskBytes is the largest copy that is made for a worker.
const maxDiskBytes = 1 << 44

var errNoDisk = errors.New("that is no disk of this VM")

// openFor opens the files of a disk that a jailed worker asks for, if it is one of its VM's, and hands them over.
func (s *supervisor) openFor(w *worker, o wire.WorkerOpenDisk) {
	s.fetch(w, diskPatience, func(ctx context.Context) { // its former user may still have to close it
		d, ok := s.diskOf(w.vm, o.Disk)
		if !ok || o.Bytes > maxDiskBytes {
			s.counts.refusedDials.Add(1)
			s.log.Warn().Uint64("vm", uint64(w.vm)).Str("disk", o.Disk).Msg("a worker wants to open what is no disk of its VM")
			s.handOver(ctx, w, o.ID, nil, nil, errNoDisk)
			return
		}
		c := disk.ImageConfig{Bytes: int64(o.Bytes)}
		if o.Link {
			c.Source = d.Source
		}
		f, err := disk.OpenFiles(filepath.Join(s.diskDir(), d.Dir), c)
		if err != nil {
			s.handOver(ctx, w, o.ID, nil, nil, err)
			return
		}
		defer f.Close()
		note := []byte{0}
		if f.Linked {
			note[0] = 1
		}
		s.handOver(ctx, w, o.ID, note, []*os.File{f.Image, f.Sums, f.Journal}, nil)
	})
}

// handOver sends descriptors, or why there are none, to the worker.
func (s *supervisor) handOver(ctx context.Context, w *worker, id uint64, note []byte, files []*os.File, why error) {
	msg := append(binary.LittleEndian.AppendUint64(nil, id), note...)
	var rights []byte
	if why != nil {
		msg = append(msg[:8], why.Error()...)
		msg = msg[:min(len(msg), 8+256)]
	} else {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	err := s.send(ctx, w, msg, rights)
	if err != nil && ctx.Err() == nil {
		s.log.Debug().Err(err).Uint64("vm", uint64(w.vm)).Msg("what a worker asked for could not be handed over")
	}
}

func (s *supervisor) send(ctx context.Context, w *worker, msg, rights []byte) error {
	p := w.process()
	if p == nil {
		return errGone
	}
	to, err := dialSocket(ctx, p, w.dir, wire.WorkerHandSocket)
	if err != nil {
		return err
	}
	defer to.Close()
	_, _, err = to.(*net.UnixConn).WriteMsgUnix(msg, rights, nil)
	return err
}

// bellPath is where workers of a data directory send their notes.
func (s *supervisor) bellPath() string { return filepath.Join(s.dir, wire.WorkersBell) }
