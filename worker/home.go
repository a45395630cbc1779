package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link/futex"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/wire"
)

var (
	errEnded      = errors.New("the VM has ended")
	errBadRequest = errors.New("device request makes no sense") // only a broken or hostile peer sends one
)

// home holds the devices of a VM that exist once: console, output log, clock, exit. It lives in the home part's worker, and gives all
// vCPUs, wherever they run, one order of output.
//
// Output of a protected VM is held back: what the guest has done since a checkpoint leaves only once the checkpoint after it is safe with
// every standby (output commit). Held output is part of the checkpoint, so that it leaves exactly once whoever is home then.
type home struct {
	onExit func(status uint32)
	onFull func(on bool, limit int) // too much output is held back: more bytes than limit; or no longer. It must not wait. nil: nobody wants to know

	heldLimit int // bytes of streams
	waitLimit int // blocks of disks

	mu        futex.Mutex // protects all below
	console   stream
	output    stream
	frames    heldFrames
	line      []byte
	began     time.Time // when the clock read base
	base      time.Duration
	stands    bool // the VM is paused: the clock stands at base
	lastMilli uint32
	done      []doneRequest // by vCPU
	exited    bool          // the guest has asked for the end
	status    uint32
	closed    bool
	down      bool        // the guest boots again: requests of the former boot are refused
	since     ident.Epoch // of the VM, with which this boot began; 0: the first. Requests of before are refused
	holding   bool
	origins   [][]byte              // by vCPU; valid once loaded is closed
	loaded    chan struct{}         // of this boot; closed when the image is in memory
	asked     []bool                // by vCPU, while a checkpoint was taken over and not all vCPUs have asked for their origin
	gone      chan struct{}         // of this boot; closed when it ends
	full      bool                  // as onFull was told last
	urgent    chan struct{}         // has a token when a checkpoint should not wait: the guest's end is held back
	machine   func() *machine.Board // the devices of a Linux machine, nil if the guest is none
	moved     *machine.BoardState   // that a checkpoint captured, until the board is made
	board     *machine.Board        // nil if the guest has no PCI bus
	disks     *disks                // nil if it has none
	bus       *machine.BusState     // of a checkpoint, for the board that is to be made

	off      atomic.Bool // as exited
	accessMu sync.Mutex  // held over an access to the board; taken before mu
	settling sync.Mutex  // held while holding back begins or ends, and over writes to disks that need not wait any more; taken before mu
}

// doneRequest remembers a vCPU's last request and its answer.
type doneRequest struct {
	Seq   uint64 `json:"seq"`
	Value uint64 `json:"value"`
}

// newHome opens the console and output files, which it appends to.
func newHome(fs *files, vcpus int, onExit func(uint32)) (*home, error) {
	h := &home{heldLimit: heldLimit, waitLimit: waitLimit, done: make([]doneRequest, vcpus), onExit: onExit, loaded: make(chan struct{}), gone: make(chan struct{}), urgent: make(chan struct{}, 1)}
	var err error
	if h.console, err = openStream(fs, wire.WorkerConsoleFile, wire.WorkerConsoleStartFile); err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	if h.output, err = openStream(fs, wire.WorkerOutputFile, wire.WorkerOutputStartFile); err != nil {
		h.console.close()
		return nil, fmt.Errorf("output log: %w", err)
	}
	return h, nil
}

// setLoaded says that the guest's image is in memory, and starts its clock.
func (h *home) setLoaded(origins [][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.origins = origins
	h.began = time.Now()
	close(h.loaded)
}

// origin waits until the image is loaded and returns what a vCPU begins with.
func (h *home) origin(ctx context.Context, vcpu ident.VCPU) ([]byte, error) {
	h.note(vcpu)
	loaded, gone := h.waits()
	select {
	case <-gone:
		return nil, errNewLife
	default:
	}
	select {
	case <-loaded:
	case <-gone:
		return nil, errNewLife
	case <-ctx.Done():
		return nil, errEnded
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return nil, errNewLife
	}
	if int(vcpu) >= len(h.origins) {
		return nil, fmt.Errorf("%w: origin of vCPU %d of %d", errBadRequest, vcpu, len(h.origins))
	}
	return h.origins[vcpu], nil
}

// do carries out one request other than opOrigin. An error other than errEnded and errBadRequest is a failure of the home's files and
// ends the VM.
func (h *home) do(r deviceRequest) (uint64, error) {
	if int(r.vcpu) >= len(h.done) {
		return 0, fmt.Errorf("%w: vCPU %d of %d", errBadRequest, r.vcpu, len(h.done))
	}
	if r.op == opAccess {
		return h.access(r)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if answer, done, err := h.known(r); done || err != nil {
		return answer, err
	}
	value, err := h.perform(r)
	if err != nil {
		return 0, err
	}
	h.done[r.vcpu] = doneRequest{Seq: r.seq, Value: uint64(value)}
	h.checkHeld()
	return uint64(value), nil
}

// perform requires mu.
func (h *home) perform(r deviceRequest) (uint32, error) {
	switch r.op {
	case opConsole:
		h.line = append(h.line[:0], byte(r.value))
		if err := h.console.put(h.line, h.holding); err != nil {
			return 0, fmt.Errorf("console log: %w", err)
		}
	case opRecord:
		h.line = append(strconv.AppendUint(h.line[:0], uint64(r.value), 10), '\n')
		if err := h.output.put(h.line, h.holding); err != nil {
			return 0, fmt.Errorf("output log: %w", err)
		}
	case opClock:
		h.lastMilli = max(h.lastMilli, uint32(h.clock().Milliseconds()))
		return h.lastMilli, nil
	case opExit:
		h.exit(r.value)
	default:
		return 0, fmt.Errorf("%w: unknown operation %d", errBadRequest, r.op)
	}
	return 0, nil
}

// clock is the time since the VM first started. It requires mu.
func (h *home) clock() time.Duration {
	if h.stands {
		return h.base
	}
	return h.base + time.Since(h.began)
}

// homeState is what a checkpoint holds of the devices, besides output.
type homeState struct {
	ClockMicros int64         `json:"clock_micros"`
	LastMilli   uint32        `json:"last_milli"`
	Done        []doneRequest `json:"done"`
	Exited      bool          `json:"exited"`
	Status      uint32        `json:"status"`

	Logs  *logStarts          `json:"logs,omitempty"` // if something of them was dropped; for a saved VM
	Board *machine.BusState   `json:"board,omitempty"`
	Linux *machine.BoardState `json:"linux,omitempty"` // of a Linux machine
}

// logStarts is where the logs begin.
type logStarts struct {
	Console wire.LogStart `json:"console"`
	Output  wire.LogStart `json:"output"`
}

// outputPiece is output bytes at an offset of the whole stream.
type outputPiece struct {
	offset int64
	bytes  []byte
}

// cut captures the devices, and the output made since the last cut, for a checkpoint. The guard must hold all vCPUs of the VM.
func (h *home) cut() (state []byte, console, output outputPiece, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := homeState{ClockMicros: h.clock().Microseconds(), LastMilli: h.lastMilli, Done: h.done, Exited: h.exited, Status: h.status}
	if h.machine != nil {
		all := h.machine().State()
		s.Linux = &all
	}
	if h.board != nil {
		board := h.board.BusState()
		s.Board = &board
	}
	if h.console.start.Offset|h.output.start.Offset != 0 {
		s.Logs = &logStarts{Console: h.console.start, Output: h.output.start}
	}
	if state, err = json.Marshal(s); err != nil {
		return nil, console, output, fmt.Errorf("device state: %w", err)
	}
	return state, h.console.takeCut(), h.output.takeCut(), nil
}

// outputCut is where a checkpoint's output ends in each stream, and whether the guest had asked for the end by then.
type outputCut struct {
	number          uint64 // of the checkpoint
	console, output int64
	frames          uint64
	exited          bool
}

// cutHere returns how far the devices are. The guard must hold all vCPUs of the VM.
func (h *home) cutHere(number uint64) outputCut {
	h.mu.Lock()
	defer h.mu.Unlock()
	return outputCut{number: number, console: h.console.end(), output: h.output.end(), frames: h.frames.end(), exited: h.exited}
}

// takeCut returns a copy of what is held, all of which belongs to this checkpoint or to an earlier one that is not safe yet.
func (s *stream) takeCut() outputPiece {
	return outputPiece{offset: s.written, bytes: bytes.Clone(s.held)}
}

// heldBytes is how much output waits.
func (h *home) heldBytes() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint64(len(h.console.held) + len(h.output.held))
}

// hold begins or ends holding back output. Its end lets all leave. Output is held back before writes to disks are, and leaves after they went there: so
// nothing leaves that says of a flush which is not done. Disks may take their time, in which the devices answer.
func (h *home) hold(on bool) error {
	h.settling.Lock()
	defer h.settling.Unlock()
	if on {
		h.mu.Lock()
		h.holding = true
		h.mu.Unlock()
		return h.disksNow().hold(true)
	}
	disks := h.disksNow()
	if err := disks.hold(false); err != nil {
		return err
	}
	h.holdFrames(false)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = false
	if h.disks != disks { // they were opened just now, and have nothing that waits
		if err := h.disks.hold(false); err != nil {
			return err
		}
	}
	return h.release(h.console.end(), h.output.end())
}

func (h *home) isHolding() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.holding
}

// disksNow returns the VM's disks, nil if it has none or they are not open yet.
func (h *home) disksNow() *disks {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disks
}

// committed lets the output leave that was made up to a cut: its checkpoint is safe.
func (h *home) committed(cut outputCut) error {
	h.settling.Lock()
	defer h.settling.Unlock()
	if err := h.disksNow().committed(cut.number); err != nil {
		return err
	}
	frames, err := h.letOut(cut)
	sendFrames(frames)
	return err
}

// letOut releases what was put out up to a cut, and returns the frames among it.
func (h *home) letOut(cut outputCut) ([]heldFrame, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.release(cut.console, cut.output); err != nil || h.closed {
		return nil, err
	}
	if cut.exited {
		h.onExit(h.status)
	}
	return h.frames.take(cut.frames), nil
}

// release requires mu.
func (h *home) release(console, output int64) error {
	if h.closed {
		return nil
	}
	if err := h.console.release(console); err != nil {
		return fmt.Errorf("console log: %w", err)
	}
	if err := h.output.release(output); err != nil {
		return fmt.Errorf("output log: %w", err)
	}
	h.checkHeld()
	if h.exited && !h.holding {
		h.onExit(h.status)
	}
	return nil
}

// restore makes the devices what a checkpoint captured. The files hold the output up to it already. elapsed is the time since the cut.
func (h *home) restore(state []byte, elapsed time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s homeState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	if len(s.Done) != len(h.done) {
		return fmt.Errorf("device state of %d vCPUs, the VM has %d", len(s.Done), len(h.done))
	}
	h.base, h.began = time.Duration(s.ClockMicros)*time.Microsecond+elapsed, time.Now()
	h.lastMilli, h.done, h.exited, h.status, h.bus = s.LastMilli, s.Done, s.Exited, s.Status, s.Board
	h.moved = s.Linux
	h.off.Store(h.exited)
	switch {
	case !h.exited:
	case h.holding:
		h.urgent <- struct{}{} // new, so it has room
	default:
		h.onExit(h.status)
	}
	return nil
}

// close ends all output. What is held back stays unseen: it belongs to a checkpoint that is not safe.
func (h *home) close() {
	defer h.closeDevices()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	h.checkHeld()
	if !h.down {
		close(h.gone)
	}
	h.console.close()
	h.output.close()
}
