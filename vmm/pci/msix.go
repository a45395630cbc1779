package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
)

const (
	capMSIX      = 0x11
	entryBytes   = 16
	entryMasked  = 1 << 0
	msixEnable   = 1 << 15
	msixMaskAll  = 1 << 14
	pbaOffset    = 0x1000 // of the pending bits, from the table
	areaBytes    = 0x2000
	maxVectors   = pbaOffset / entryBytes
	messageFirst = 0xfee00000
	messageLast  = 0xfeefffff
)

// Signal sends a message-signalled interrupt.
type Signal func(addr uint64, data uint32)

// MSIX is a function's table of interrupt vectors. Its methods may be called from any thread.
type MSIX struct {
	signal Signal
	cap    int    // offset of the capability in configuration space
	table  uint64 // offset of the table in BAR 0, a multiple of 4096; it takes 8 KiB

	mu      sync.Mutex // protects everything below; signal is called without it
	entries []byte
	due     []bool // raised while masked
	control uint16
}

// AddMSIX gives the function n vectors, whose table is at offset of BAR 0.
func (f *Function) AddMSIX(n int, offset uint32, signal Signal) *MSIX {
	if n < 1 || n > maxVectors {
		panic(fmt.Sprintf("pci: %d MSI-X vectors", n))
	}
	body := make([]byte, 10)
	le := binary.LittleEndian
	le.PutUint16(body[0:], uint16(n-1))
	le.PutUint32(body[2:], offset)
	le.PutUint32(body[6:], offset+pbaOffset)
	at := f.AddCapability(capMSIX, body, []byte{0, (msixEnable | msixMaskAll) >> 8})
	f.msix = &MSIX{signal: signal, cap: at, table: uint64(offset), entries: make([]byte, n*entryBytes), due: make([]bool, n)}
	f.msix.reset()
	return f.msix
}

func (m *MSIX) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.entries)
	clear(m.due)
	m.control = 0
	for i := range m.due {
		m.entries[i*entryBytes+12] = entryMasked
	}
}

// Vectors is the number of vectors.
func (m *MSIX) Vectors() int { return len(m.due) }

// Raise sends vector's message, or remembers that it is due while it is masked. A vector that does not exist is nothing.
func (m *MSIX) Raise(vector uint16) {
	if int(vector) >= len(m.due) {
		return
	}
	m.mu.Lock()
	addr, data, ok := m.message(int(vector))
	m.mu.Unlock()
	if ok {
		m.signal(addr, data)
	}
}

// message returns what to send for a vector that is due, or notes it. It requires mu.
func (m *MSIX) message(vector int) (uint64, uint32, bool) {
	e := m.entries[vector*entryBytes:][:entryBytes]
	if m.control&msixEnable == 0 {
		return 0, 0, false
	}
	if m.control&msixMaskAll != 0 || e[12]&entryMasked != 0 {
		m.due[vector] = true
		return 0, 0, false
	}
	m.due[vector] = false
	addr := binary.LittleEndian.Uint64(e)
	// A message elsewhere would be a write to guest memory; no sane guest asks for it, and no device here does it.
	return addr, binary.LittleEndian.Uint32(e[8:]), addr >= messageFirst && addr <= messageLast
}

// flush sends what was due and is not masked any more.
func (m *MSIX) flush() {
	for i := range m.due {
		m.mu.Lock()
		var addr uint64
		var data uint32
		ok := m.due[i]
		if ok {
			addr, data, ok = m.message(i)
		}
		m.mu.Unlock()
		if ok {
			m.signal(addr, data)
		}
	}
}

func (m *MSIX) setControl(control uint16) {
	m.mu.Lock()
	changed := m.control != control
	m.control = control
	m.mu.Unlock()
	if changed {
		m.flush()
	}
}

func (m *MSIX) owns(offset uint64) bool { return offset >= m.table && offset < m.table+areaBytes }

func (m *MSIX) read(offset uint64, size int) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b [8]byte
	at := offset - m.table
	switch {
	case at+uint64(size) <= uint64(len(m.entries)):
		copy(b[:size], m.entries[at:])
	case at >= pbaOffset:
		for i, due := range m.due {
			if bit := uint64(i) - 8*(at-pbaOffset); due && uint64(i) >= 8*(at-pbaOffset) && bit < 8*uint64(size) {
				b[bit/8] |= 1 << (bit % 8)
			}
		}
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (m *MSIX) write(offset uint64, size int, v uint64) {
	at := offset - m.table
	m.mu.Lock()
	inside := at+uint64(size) <= uint64(len(m.entries))
	if inside {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		copy(m.entries[at:], b[:size])
	}
	m.mu.Unlock()
	if inside {
		m.flush()
	}
}

func (m *MSIX) state() ([]byte, []bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.entries...), append([]bool(nil), m.due...)
}

func (m *MSIX) setState(s State, control uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s.Table) != len(m.entries) || len(s.Due) != len(m.due) {
		return fmt.Errorf("PCI function state has %d MSI-X vectors, want %d", len(s.Due), len(m.due))
	}
	copy(m.entries, s.Table)
	copy(m.due, s.Due)
	m.control = control
	return nil
}
