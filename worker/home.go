package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// deviceOp is one operation of the payload ABI that only the home part can do.
type deviceOp uint8

const (
	opConsole deviceOp = iota + 1 // value: the byte
	opRecord                      // value: the record
	opClock                       // answer: milliseconds since the VM first started
	opExit                        // value: the guest's status
	opStart                       // waits until the image is loaded; answer: the vCPU's first registers
)

// deviceRequest is one such operation of one vCPU. Seq rises with each request of a vCPU, from 1, so that one repeated after a broken
// connection is done once.
type deviceRequest struct {
	vcpu  ident.VCPU
	op    deviceOp
	seq   uint64
	value uint32
}

const deviceRequestBytes = 16

func (r deviceRequest) encode(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.seq)
	b = binary.LittleEndian.AppendUint32(b, r.value)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.vcpu))
	return append(b, byte(r.op), 0)
}

func decodeDeviceRequest(b []byte) (deviceRequest, error) {
	if len(b) != deviceRequestBytes {
		return deviceRequest{}, fmt.Errorf("device request of %d bytes, want %d", len(b), deviceRequestBytes)
	}
	return deviceRequest{
		seq:   binary.LittleEndian.Uint64(b),
		value: binary.LittleEndian.Uint32(b[8:]),
		vcpu:  ident.VCPU(binary.LittleEndian.Uint16(b[12:])),
		op:    deviceOp(b[14]),
	}, nil
}

var (
	errEnded      = errors.New("the VM has ended")
	errBadRequest = errors.New("device request makes no sense") // only a broken or hostile peer sends one
)

// home holds the devices of a VM that exist once: console, output log, clock, exit. It lives in the home part's worker, and gives all
// vCPUs, wherever they run, one order of output.
type home struct {
	mu        sync.Mutex
	console   *os.File
	output    *os.File
	line      []byte
	started   time.Time
	lastMilli uint32
	done      []doneRequest // by vCPU
	ended     bool
	onExit    func(status uint32)
	loaded    chan struct{} // closed when the image is in memory
	starts    []kvm.Start   // by vCPU; valid once loaded is closed
}

// doneRequest remembers a vCPU's last request and its answer.
type doneRequest struct {
	seq   uint64
	value uint32
}

// newHome opens the console and output files, which it appends to.
func newHome(consolePath, outputPath string, vcpus int, onExit func(uint32)) (*home, error) {
	h := &home{done: make([]doneRequest, vcpus), onExit: onExit, loaded: make(chan struct{})}
	var err error
	if h.console, err = os.OpenFile(consolePath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	if h.output, err = os.OpenFile(outputPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		h.console.Close()
		return nil, fmt.Errorf("output log: %w", err)
	}
	return h, nil
}

// setLoaded says that the guest's image is in memory, and starts its clock.
func (h *home) setLoaded(starts []kvm.Start) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starts = starts
	h.started = time.Now()
	close(h.loaded)
}

// start waits until the image is loaded and returns the vCPU's first registers.
func (h *home) start(ctx context.Context, vcpu ident.VCPU) (kvm.Start, error) {
	select {
	case <-h.loaded:
	case <-ctx.Done():
		return kvm.Start{}, errEnded
	}
	if int(vcpu) >= len(h.starts) {
		return kvm.Start{}, fmt.Errorf("start of vCPU %d of %d", vcpu, len(h.starts))
	}
	return h.starts[vcpu], nil
}

// do carries out one request other than opStart. An error other than errEnded and errBadRequest is a failure of the home's files and
// ends the VM.
func (h *home) do(r deviceRequest) (uint32, error) {
	if int(r.vcpu) >= len(h.done) {
		return 0, fmt.Errorf("%w: vCPU %d of %d", errBadRequest, r.vcpu, len(h.done))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	last := &h.done[r.vcpu]
	if r.seq == last.seq {
		return last.value, nil
	}
	if r.seq < last.seq {
		return 0, fmt.Errorf("%w: number %d of vCPU %d after %d", errBadRequest, r.seq, r.vcpu, last.seq)
	}
	if h.ended {
		return 0, errEnded
	}
	value, err := h.perform(r)
	if err != nil {
		return 0, err
	}
	*last = doneRequest{seq: r.seq, value: value}
	return value, nil
}

// perform requires mu.
func (h *home) perform(r deviceRequest) (uint32, error) {
	switch r.op {
	case opConsole:
		h.line = append(h.line[:0], byte(r.value))
		if _, err := h.console.Write(h.line); err != nil {
			return 0, fmt.Errorf("console log: %w", err)
		}
	case opRecord:
		h.line = append(strconv.AppendUint(h.line[:0], uint64(r.value), 10), '\n')
		if _, err := h.output.Write(h.line); err != nil {
			return 0, fmt.Errorf("output log: %w", err)
		}
	case opClock:
		h.lastMilli = max(h.lastMilli, uint32(time.Since(h.started).Milliseconds()))
		return h.lastMilli, nil
	case opExit:
		h.ended = true
		h.onExit(r.value)
	default:
		return 0, fmt.Errorf("%w: unknown operation %d", errBadRequest, r.op)
	}
	return 0, nil
}

// close ends all output.
func (h *home) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.console.Close()
	h.output.Close()
}
