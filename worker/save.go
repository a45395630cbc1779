package worker

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// A VM that stands still can be saved: its home writes its memory, which the page protocol brings here, its devices and its logs, and each part its
// vCPUs, to whoever of serve connects to the socket for that. Nothing here depends on the connection: it is the registry that holds the VM.

// saver answers at the socket for states.
type saver struct {
	w        *Worker
	listener *net.UnixListener
}

// savePatience bounds the wait for output that is held back to leave, and for serve to take a piece.
const savePatience = 20 * time.Second

// listenSave makes the socket, in the working directory.
func listenSave(w *Worker) (*saver, error) {
	if err := os.Remove(wire.WorkerSaveSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket for states: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: wire.WorkerSaveSocket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket for states: %w", err)
	}
	return &saver{w: w, listener: l}, nil
}

// serve answers until the listener is closed, one caller at a time.
func (s *saver) serve() {
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		if err := fromServe(conn); err != nil {
			s.w.log.Warn().Err(err).Msg("a stranger at the socket for states")
		} else if err := s.answer(conn); err != nil {
			s.w.log.Warn().Err(err).Msg("the VM's state was not sent")
		}
		conn.Close()
	}
}

func (s *saver) answer(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(savePatience))
	var ask wire.WorkerSaveAsk
	if err := wire.ReadJSON(conn, &ask, wire.JSONLimit); err != nil {
		return err
	}
	out := bufio.NewWriterSize(timely{conn}, 1<<18)
	to, err := wire.NewSaveWriter(out)
	if err != nil {
		return err
	}
	if err = s.w.writeState(to, ask); err != nil {
		if werr := to.Write(wire.SaveRecord{Type: wire.SaveFailed, Data: []byte(err.Error())}); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return errors.Join(err, to.Close(), out.Flush())
}

// timely is a connection whose other end must take what is written within a while.
type timely struct{ net.Conn }

// Write implements io.Writer.
func (t timely) Write(b []byte) (int, error) {
	_ = t.SetDeadline(time.Now().Add(savePatience))
	return t.Conn.Write(b)
}

// writeState writes what of the VM is here.
func (w *Worker) writeState(to *wire.SaveWriter, ask wire.WorkerSaveAsk) error {
	if !w.pauses.stands(ask.Seq) {
		return errors.New("the VM does not stand still any more")
	}
	h := w.home.Load()
	if ask.Whole != (h != nil) {
		return errors.New("the VM's home has changed")
	}
	if h != nil {
		about := wire.SaveHost{CPU: w.files.cpu, Pages: w.plane.ram.Pages(), VCPUs: w.spec.VCPUs}
		if err := errors.Join(h.awaitOut(), to.WriteJSON(wire.SaveMachine, about)); err != nil {
			return err
		}
	}
	w.vcpuMu.Lock()
	vcpus := w.vcpus
	w.vcpuMu.Unlock()
	for _, v := range vcpus {
		origin, err := w.originOf(v)
		if err != nil {
			return err
		}
		if err := to.Write(wire.SaveRecord{Type: wire.SaveVCPU, Key: uint64(v.cpu.ID()), Data: origin}); err != nil {
			return err
		}
	}
	if h == nil {
		return nil
	}
	if err := h.writeState(to); err != nil {
		return err
	}
	return w.writeMemory(to)
}

// stands tells whether the part stands still as change seq of the VM's pauses asked.
func (s *pauses) stands(seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.still && s.done == seq
}

// awaitOut waits until no output is held back: what a guest put out has left before its state is kept elsewhere, and its disks are written.
func (h *home) awaitOut() error {
	for deadline := time.Now().Add(savePatience); ; time.Sleep(5 * time.Millisecond) {
		h.mu.Lock()
		held := len(h.console.held) + len(h.output.held)
		disks := h.disks
		h.mu.Unlock()
		if disks != nil {
			for _, g := range disks.all {
				g.mu.Lock()
				held += g.layers.Waiting()
				g.mu.Unlock()
			}
		}
		switch {
		case held == 0 && disks == nil:
			return nil
		case held == 0:
			for _, g := range disks.all {
				if err := g.sync(never); err != nil {
					return err
				}
			}
			return nil
		case time.Now().After(deadline):
			return errors.New("output that waits for the VM's replicas does not leave: try again when they are in step")
		}
	}
}

// writeState writes the devices and what the guest has put out.
func (h *home) writeState(to *wire.SaveWriter) error {
	state, _, _, err := h.cut()
	if err != nil {
		return err
	}
	if err := to.Write(wire.SaveRecord{Type: wire.SaveDevice, Data: state}); err != nil {
		return err
	}
	for _, l := range h.logs(logEnds{}) {
		kind := wire.SaveConsole
		if l.kind == recordOutput {
			kind = wire.SaveOutput
		}
		begins := func(wire.LogStart) error { return nil } // it is with the devices, and more is not dropped while the VM stands still
		_, err := h.eachPiece(l.of, 0, wire.SaveRecordLimit, begins, func(at int64, b []byte) error {
			return to.Write(wire.SaveRecord{Type: kind, Key: uint64(at), Data: b})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// savePages is how many pages a record holds at most. Compression does not make them larger than a record may be.
const savePages = 128

const savedPageBytes = 8 + ident.PageSize

// writeMemory writes all pages that are not zero.
func (w *Worker) writeMemory(to *wire.SaveWriter) error {
	var raw, packed, batch []byte
	batch = make([]byte, deviceBatch<<ident.PageShift)
	flush := func() error {
		if len(raw) == 0 {
			return nil
		}
		packed = s2.Encode(packed[:cap(packed)], raw)
		count := uint64(len(raw) / savedPageBytes)
		raw = raw[:0]
		return to.Write(wire.SaveRecord{Type: wire.SavePages, Key: count, Data: packed})
	}
	pages := w.plane.ram.Pages()
	for first := uint64(0); first < pages; first += deviceBatch {
		b := batch[:min(deviceBatch, pages-first)<<ident.PageShift]
		if _, err := (deviceMemory{w}).ReadAt(b, int64(first<<ident.PageShift)); err != nil {
			return fmt.Errorf("read memory: %w", err)
		}
		for i := uint64(0); len(b) > 0; i, b = i+1, b[ident.PageSize:] {
			if bytes.Equal(b[:ident.PageSize], zeroPage[:]) {
				continue
			}
			raw = appendPage(raw, first+i, b[:ident.PageSize])
			if len(raw) >= savePages*savedPageBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}
