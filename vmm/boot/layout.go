package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// placement is where the loader's tables and stacks lie. Tables are PML4, PDPT, one page directory a GiB and the tail's page table, each a
// page; those that do not fit below ImageBase go on at hidden, then come the stacks that do not fit below.
type placement struct {
	memory       uint64
	physical     ident.Bytes
	dirs         int    // page directories
	window       bool   // one more page directory maps the PCI window
	tail         int    // whole 4 KiB pages in the last, broken, 2 MiB page of memory
	hidden       uint64 // start of the hidden area: memory rounded up to 2 MiB
	lowTables    int    // tables below ImageBase; the others are at hidden
	highTables   int
	lowStacks    int    // stacks below ImageBase; the others follow the tables at hidden
	lowStackAddr uint64 // lowest low stack
	highStack    uint64 // lowest high stack
}

// Page table entry bits: present, writable, user, accessed, dirty, and page size for a 2 MiB page.
const (
	entryTable = 0x67
	entryPage  = 0x67
	entryLarge = 0xe7
	entryPCI   = entryLarge | 0x18 // write-through, cache disabled
	perTable   = 512
)

func place(memory ident.Bytes, vcpus int, window bool) (placement, error) {
	if memory%ident.PageSize != 0 || memory < MinMemory || memory > MaxMemory {
		return placement{}, fmt.Errorf("memory of %s: must be a multiple of %d, at least %s and at most %s", memory, ident.PageSize, MinMemory, MaxMemory)
	}
	if vcpus < 1 || vcpus > MaxVCPUs {
		return placement{}, fmt.Errorf("%d vCPUs: must be 1 to %d", vcpus, MaxVCPUs)
	}
	p := placement{memory: uint64(memory), physical: memory, window: window}
	p.tail = int(p.memory % largePage / ident.PageSize)
	p.hidden = roundUp(p.memory, largePage)
	// What is hidden must be mapped as well, and so costs directories itself: settle by repetition. It grows and is bounded, so it ends.
	for end := p.memory; ; {
		p.fill(vcpus, end)
		if window && uint64(p.physical) > WindowAddr {
			return placement{}, fmt.Errorf("memory of %s with %d vCPUs: with disks, memory and stacks must end below 0x%x, where PCI devices are: give it at most %s",
				memory, vcpus, uint64(WindowAddr), ident.Bytes(WindowAddr-gigabyte/4))
		}
		if uint64(p.physical) <= end {
			return p, nil
		}
		end = uint64(p.physical)
	}
}

// fill places tables that map end bytes, and the stacks.
func (p *placement) fill(vcpus int, end uint64) {
	p.dirs = int(roundUp(end, gigabyte) / gigabyte)
	tables := 2 + p.dirs
	if p.window {
		tables++
	}
	if p.tail > 0 {
		tables++
	}
	p.lowTables = min(tables, (ImageBase-tablesAddr)/ident.PageSize)
	p.highTables = tables - p.lowTables
	p.lowStackAddr = roundUp(uint64(tablesAddr+p.lowTables*ident.PageSize), StackBytes)
	p.lowStacks = min(vcpus, int((ImageBase-p.lowStackAddr)/StackBytes))
	p.highStack = roundUp(p.hidden+uint64(p.highTables)*ident.PageSize, StackBytes)
	switch {
	case vcpus > p.lowStacks:
		p.physical = ident.Bytes(roundUp(p.highStack+uint64(vcpus-p.lowStacks)*StackBytes, largePage))
	case p.highTables > 0:
		p.physical = ident.Bytes(roundUp(p.hidden+uint64(p.highTables)*ident.PageSize, largePage))
	}
}

func (p *placement) tableAddr(i int) uint64 {
	if i < p.lowTables {
		return tablesAddr + uint64(i)*ident.PageSize
	}
	return p.hidden + uint64(i-p.lowTables)*ident.PageSize
}

// stackTop is the address above the stack of vCPU i: 16-byte aligned, as the ABI says.
func (p *placement) stackTop(i int) uint64 {
	if i < p.lowStacks {
		return p.lowStackAddr + uint64(i+1)*StackBytes
	}
	return p.highStack + uint64(i-p.lowStacks+1)*StackBytes
}

// tables builds the page tables, as chunks below ImageBase and chunks in the hidden area.
func (p *placement) tables(memory ident.Bytes) (low, high []Chunk) {
	n := p.lowTables + p.highTables
	flat := make([]byte, n*ident.PageSize)
	set := func(table, index int, value uint64) {
		binary.LittleEndian.PutUint64(flat[table*ident.PageSize+index*8:], value)
	}
	const pml4, pdpt, firstDir = 0, 1, 2
	set(pml4, 0, p.tableAddr(pdpt)|entryTable)
	for d := range p.dirs {
		set(pdpt, d, p.tableAddr(firstDir+d)|entryTable)
	}
	large := func(from, to uint64) {
		for a := from; a < to; a += largePage {
			set(firstDir+int(a/gigabyte), int(a%gigabyte/largePage), a|entryLarge)
		}
	}
	if p.window {
		set(pdpt, WindowAddr/gigabyte, p.tableAddr(firstDir+p.dirs)|entryTable)
		for a := uint64(0); a < WindowBytes; a += largePage {
			set(firstDir+p.dirs, int(a/largePage), (WindowAddr+a)|entryPCI)
		}
	}
	whole := p.memory / largePage * largePage
	large(0, whole)
	if p.tail > 0 {
		last := n - 1
		set(firstDir+int(whole/gigabyte), int(whole%gigabyte/largePage), p.tableAddr(last)|entryTable)
		for i := range p.tail {
			set(last, i, whole+uint64(i)*ident.PageSize|entryPage)
		}
	}
	if p.physical > memory {
		large(p.hidden, uint64(p.physical))
	}
	cut := p.lowTables * ident.PageSize
	low = []Chunk{{tablesAddr, flat[:cut]}}
	if cut < len(flat) {
		high = []Chunk{{p.hidden, flat[cut:]}}
	}
	return low, high
}

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }
