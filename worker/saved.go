package worker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/s2"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// loadSaved makes the guest what a saved VM was, in the place of its image: home does it once, before any vCPU begins.
//
//	file --checked--> logs, memory (through the page protocol), devices, vCPUs' origins --setLoaded--> every vCPU begins where it was
func (w *Worker) loadSaved() error {
	file, err := w.files.open(w.spec.SavedPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	from, err := wire.NewSaveReader(io.NewSectionReader(file, 0, 1<<62)) // what is held has one offset for all
	if err != nil {
		return err
	}
	s := &savedState{w: w, h: w.home.Load(), origins: make([][]byte, w.spec.VCPUs)}
	for {
		rec, err := from.Next()
		if errors.Is(err, io.EOF) {
			return s.finish()
		}
		if err == nil {
			err = s.take(rec)
		}
		if err != nil {
			return err
		}
	}
}

// savedState is what has been read of a saved VM.
type savedState struct {
	w       *Worker
	h       *home
	origins [][]byte
	device  []byte
	hosted  bool
	room    []byte
}

var errBadSaved = errors.New("the saved VM makes no sense")

func (s *savedState) take(rec wire.SaveRecord) error {
	switch rec.Type {
	case wire.SaveMachine:
		return s.host(rec.Data)
	case wire.SaveVCPU:
		if rec.Key >= uint64(len(s.origins)) {
			return fmt.Errorf("%w: vCPU %d of %d", errBadSaved, rec.Key, len(s.origins))
		}
		s.origins[rec.Key] = append([]byte(nil), rec.Data...)
	case wire.SaveDevice:
		s.device = append([]byte(nil), rec.Data...)
	case wire.SaveConsole:
		return s.log(&s.h.console, rec, func(l *logStarts) wire.LogStart { return l.Console })
	case wire.SaveOutput:
		return s.log(&s.h.output, rec, func(l *logStarts) wire.LogStart { return l.Output })
	case wire.SavePages:
		return s.pages(rec)
	}
	return nil
}

// host checks that the state can go on here.
func (s *savedState) host(text []byte) error {
	var host wire.SaveHost
	if err := json.Unmarshal(text, &host); err != nil {
		return fmt.Errorf("%w: %w", errBadSaved, err)
	}
	switch here := s.w.files.cpu; {
	case host.CPU != here:
		return fmt.Errorf("it was saved on a processor %q, this server has %q: restore it where the processors are the same", host.CPU, here)
	case host.Pages != s.w.plane.ram.Pages() || host.VCPUs != s.w.spec.VCPUs:
		return fmt.Errorf("%w: it has %d pages and %d vCPUs, the VM %d and %d", errBadSaved, host.Pages, host.VCPUs, s.w.plane.ram.Pages(), s.w.spec.VCPUs)
	}
	s.hosted = true
	return nil
}

// log puts a piece of output into a log that is empty so far. If its beginning had been dropped, the devices' state says so, which is before it.
func (s *savedState) log(to *stream, rec wire.SaveRecord, start func(*logStarts) wire.LogStart) error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if to.end() == 0 && rec.Key != 0 {
		var state homeState
		if err := json.Unmarshal(s.device, &state); err != nil || state.Logs == nil {
			return fmt.Errorf("%w: output at %d, of which there is no beginning", errBadSaved, rec.Key)
		}
		if err := to.begin(start(state.Logs)); err != nil {
			return fmt.Errorf("%w: %w", errBadSaved, err)
		}
	}
	if uint64(to.end()) != rec.Key {
		return fmt.Errorf("%w: output at %d, not at %d", errBadSaved, rec.Key, to.end())
	}
	return to.put(rec.Data, s.h.holding)
}

func (s *savedState) pages(rec wire.SaveRecord) error {
	n, err := s2.DecodedLen(rec.Data)
	if err != nil || n > savePages*savedPageBytes || n%savedPageBytes != 0 || !s.hosted {
		return fmt.Errorf("%w: %d bytes of pages", errBadSaved, n)
	}
	if s.room, err = s2.Decode(s.room[:cap(s.room)], rec.Data); err != nil {
		return fmt.Errorf("%w: %w", errBadSaved, err)
	}
	for b := s.room; len(b) > 0; b = b[savedPageBytes:] {
		page := binary.LittleEndian.Uint64(b)
		if page >= s.w.plane.ram.Pages() {
			return fmt.Errorf("%w: page 0x%x", errBadSaved, page)
		}
		if _, err := (deviceMemory{s.w}).WriteAt(b[8:savedPageBytes], int64(page<<ident.PageShift)); err != nil {
			return err
		}
	}
	return nil
}

// finish puts the devices and the vCPUs into place, and lets the vCPUs begin.
func (s *savedState) finish() error {
	if s.device == nil || !s.hosted {
		return fmt.Errorf("%w: it has no devices", errBadSaved)
	}
	vcpus := map[ident.VCPU][]byte{}
	for i, origin := range s.origins {
		if len(origin) == 0 {
			return fmt.Errorf("%w: it has no state of vCPU %d", errBadSaved, i)
		}
		vcpus[ident.VCPU(i)] = origin
	}
	if err := s.h.restore(s.device, 0); err != nil {
		return fmt.Errorf("%w: %w", errBadSaved, err)
	}
	r := &replica{vcpus: vcpus}
	if s.w.linux != nil {
		if err := s.w.takeOverLinux(r); err != nil {
			return err
		}
		if err := s.w.pauses.bootedAnew(s.w); err != nil {
			return err
		}
	} else {
		if err := s.w.addDevices(s.h); err != nil {
			return err
		}
		if s.h.board != nil && s.h.bus != nil {
			if err := s.h.board.SetBusState(*s.h.bus); err != nil {
				return err
			}
		}
	}
	s.h.setLoaded(s.origins)
	return nil
}

// appendPage adds a page to what is written of memory.
func appendPage(b []byte, page uint64, contents []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(b, page), contents...)
}
