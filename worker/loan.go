package worker

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// loan is what a lender holds for one part of a VM: numbered frames, in memory, or on disk if the borrower does not give back what was recalled.
type loan struct {
	plane *link.Pages

	mu     sync.Mutex // protects all below
	terms  wire.LenderLoan
	memory *os.File
	disk   *os.File
	frames []place
	count  [3]int // frames by place
	last   uint64 // number of the last put or cut that was heeded
}

// place is where a frame is.
type place uint8

const (
	frameAbsent place = iota
	frameInMemory
	frameOnDisk
)

// open makes a loan at a desk.
func (l *lender) open(d *desk, terms wire.LenderLoan) (*loan, error) {
	secret, err := hex.DecodeString(terms.Secret)
	if err != nil {
		return nil, fmt.Errorf("lend memory to VM %d: secret: %w", terms.VM, err)
	}
	fd, err := unix.MemfdCreate("cellvisor-lent", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("lend memory to VM %d: %w", terms.VM, err)
	}
	o := &loan{terms: terms, memory: os.NewFile(uintptr(fd), "lent memory"), disk: d.disk}
	port, err := d.port.File() // of its own: the plane closes it
	if err == nil {
		var again net.Listener
		if again, err = net.FileListener(port); err == nil {
			o.plane, err = link.ListenPages(link.PagesConfig{
				ClusterID: l.spec.ClusterID, VM: terms.VM, Self: terms.As, Server: l.spec.Server, Secret: secret, Seal: l.spec.Seal, Listener: again, Handler: loanHandler{o: o, awake: &l.awake},
				Logf: func(format string, args ...any) { l.log.Debug().Msgf(format, args...) },
			})
		}
		port.Close()
	}
	if err == nil {
		err = o.plane.SetMembers(lendEpoch, []wire.WorkerMember{{Part: 0, Server: terms.Server}, {Part: terms.As, Server: l.spec.Server}})
	}
	if err != nil {
		o.end()
		return nil, fmt.Errorf("lend memory to VM %d: %w", terms.VM, err)
	}
	return o, nil
}

// is tells whether terms are of this loan.
func (o *loan) is(t wire.LenderLoan) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.terms.VM == t.VM && o.terms.Part == t.Part && o.terms.As == t.As && o.terms.Server == t.Server
}

// end forgets all frames.
func (o *loan) end() {
	if o.plane != nil {
		_ = o.plane.Close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames, o.count = nil, [3]int{}
	_ = o.memory.Close()
	_ = o.disk.Truncate(0)
}

// change takes in new terms.
func (o *loan) change(t wire.LenderLoan) error {
	o.mu.Lock()
	o.terms = t
	o.mu.Unlock()
	left := pageOutFrames
	for no := int(t.Limit >> ident.PageShift); t.PageOut && left > 0; no++ {
		moved, more, err := o.pageOut(no)
		if err != nil || !more {
			return err
		}
		if moved {
			left--
		}
	}
	return nil
}

// pageOutFrames is how many frames go to disk when serve speaks, which it does twice a second: it waits for the answer.
const pageOutFrames = 4096

// pageOut moves a frame to disk. The borrower's requests come between any two.
func (o *loan) pageOut(no int) (moved, more bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if no >= len(o.frames) {
		return false, false, nil
	}
	if o.frames[no] != frameInMemory {
		return false, true, nil
	}
	var page [ident.PageSize]byte
	at := int64(no) << ident.PageShift
	if _, err := o.memory.ReadAt(page[:], at); err != nil {
		return false, false, fmt.Errorf("lent memory: %w", err)
	}
	if _, err := o.disk.WriteAt(page[:], at); err != nil {
		return false, false, fmt.Errorf("page out lent memory: %w", err)
	}
	free(o.memory, no, 1)
	o.put(no, frameOnDisk)
	return true, true, nil
}

// state is what serve is told.
func (o *loan) state() wire.LenderState {
	o.mu.Lock()
	defer o.mu.Unlock()
	return wire.LenderState{LenderLoan: o.terms, Addr: o.plane.Addr(), InMemory: ident.Bytes(o.count[frameInMemory]) << ident.PageShift, OnDisk: ident.Bytes(o.count[frameOnDisk]) << ident.PageShift}
}

// put notes where a frame is. It requires mu.
func (o *loan) put(no int, to place) {
	for no >= len(o.frames) {
		o.frames = append(o.frames, frameAbsent)
		o.count[frameAbsent]++
	}
	o.count[o.frames[no]]--
	o.count[to]++
	o.frames[no] = to
}

// free gives back what n frames take of a file. A file system that cannot keeps it until the loan ends. It requires mu.
func free(file *os.File, no, n int) {
	_ = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(no)<<ident.PageShift, int64(n)<<ident.PageShift)
}

// serve answers one request of the borrower. A page that it gives is put into room.
func (o *loan) serve(body []byte, room *[ident.PageSize]byte) (wire.DeviceStatus, []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(body) >= wire.LendPutHeader && (body[0] == wire.LendPut || body[0] == wire.LendCut) {
		number := binary.LittleEndian.Uint64(body[1:])
		if number <= o.last { // it was on its way when the borrower gave up waiting for it
			return wire.DeviceBad, nil
		}
		o.last = number
		if rest := body[wire.LendPutHeader:]; body[0] == wire.LendPut {
			return o.takeFrames(rest), nil
		} else if len(rest) == 4 {
			o.cut(int(binary.LittleEndian.Uint32(rest)))
			return wire.DeviceOK, nil
		}
	}
	if len(body) == 5 && body[0] == wire.LendGet {
		return o.give(int(binary.LittleEndian.Uint32(body[1:])), room)
	}
	return wire.DeviceBad, nil
}

// takeFrames requires mu.
func (o *loan) takeFrames(b []byte) wire.DeviceStatus {
	if len(b) == 0 || len(b)%wire.LendFrameBytes != 0 {
		return wire.DeviceBad
	}
	for ; len(b) > 0; b = b[wire.LendFrameBytes:] {
		no := int(binary.LittleEndian.Uint32(b))
		to, file := frameInMemory, o.memory
		switch at := ident.Bytes(no) << ident.PageShift; {
		case at >= o.terms.Bytes:
			return wire.DeviceBad
		case at >= o.terms.Limit && o.terms.PageOut:
			to, file = frameOnDisk, o.disk
		}
		if _, err := file.WriteAt(b[4:wire.LendFrameBytes], int64(no)<<ident.PageShift); err != nil {
			return wire.DeviceBad
		}
		o.put(no, to)
	}
	return wire.DeviceOK
}

// give requires mu.
func (o *loan) give(no int, room *[ident.PageSize]byte) (wire.DeviceStatus, []byte) {
	if no >= len(o.frames) || o.frames[no] == frameAbsent {
		return wire.DeviceBad, nil
	}
	file := o.memory
	if o.frames[no] == frameOnDisk {
		file = o.disk
	}
	if _, err := file.ReadAt(room[:], int64(no)<<ident.PageShift); err != nil {
		return wire.DeviceBad, nil
	}
	return wire.DeviceOK, room[:]
}

// cut forgets all frames from one on. It requires mu.
func (o *loan) cut(from int) {
	if from >= len(o.frames) {
		return
	}
	free(o.memory, from, len(o.frames)-from)
	free(o.disk, from, len(o.frames)-from)
	for no := from; no < len(o.frames); no++ {
		o.count[o.frames[no]]--
	}
	o.frames = o.frames[:from]
}

// loanHandler is the lender's end of the plane.
type loanHandler struct {
	lenderHandler
	o     *loan
	awake *awake
}

// lentRooms are where pages are read that go back.
var lentRooms = sync.Pool{New: func() any { return new([ident.PageSize]byte) }}

// HandleDevice implements link.Handler.
func (h loanHandler) HandleDevice(_ ident.Part, _ ident.Epoch, req link.DeviceRequest) {
	room := lentRooms.Get().(*[ident.PageSize]byte)
	req.Reply(h.o.serve(req.Payload, room))
	if len(req.Payload) > 0 && req.Payload[0] == wire.LendGet {
		h.awake.note(bootMicros(), awakeLoan)
	}
	lentRooms.Put(room)
}
