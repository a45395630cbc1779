// Package bad holds guest programs for tests, most of which misbehave: a VM that runs one must end as failed, with a reason and a register dump,
// and nothing else may notice. Sources in src, built by payload's Makefile.
package bad

import (
	"embed"
	"encoding/binary"
	"fmt"
)

//go:embed images/*.elf
var images embed.FS

// Names lists the programs: their names say what they do.
var Names = []string{
	"triplefault",   // executes an invalid instruction without an IDT
	"jump",          // jumps to an address that nothing maps
	"outside",       // writes beyond the end of its memory
	"outside-read",  // reads beyond the end of its memory
	"unknown-port",  // writes to a port that the ABI does not have
	"unknown-input", // reads from a port that the ABI does not have
	"string-io",     // REP OUTSB to the console, which is legal, then ends with status 0
	"spin",          // all vCPUs spin for ever
	"exit-7",        // ends at once with status 7
	"wreck-tables",  // overwrites the loader's page tables, then touches memory
	"registers",     // behaves: checks that its registers survive whatever is done to its vCPU
	"ports",         // does port I/O for ever
	"image",         // behaves: checks a large image, see Image
	"toucher",       // writes the word at 8 MiB and does a port output, for ever
}

// Open returns the ELF image of a program.
func Open(name string) ([]byte, error) {
	image, err := images.ReadFile("images/" + name + ".elf")
	if err != nil {
		return nil, fmt.Errorf("no misbehaving payload %q: %w", name, err)
	}
	return image, nil
}

// ImageAddr is where the data of Image lies.
const ImageAddr = 32 << 20

// Image returns the program "image" with the data that it checks: so many pages in a segment of their own.
func Image(pages int) ([]byte, error) {
	elf, err := Open("image")
	if err != nil {
		return nil, err
	}
	const page, header, phoff, phnum = 4096, 56, 32, 56
	le := binary.LittleEndian
	count := int(le.Uint16(elf[phnum:]))
	table := append([]byte(nil), elf[le.Uint64(elf[phoff:]):][:count*header]...)
	at := (len(elf) + len(table) + header + page - 1) / page * page
	for _, field := range []uint64{1 | 6<<32, uint64(at), ImageAddr, ImageAddr, uint64(pages * page), uint64(pages * page), page} { // PT_LOAD, readable and writable
		table = le.AppendUint64(table, field)
	}
	file := append(append([]byte(nil), elf...), table...)
	le.PutUint64(file[phoff:], uint64(len(elf)))
	le.PutUint16(file[phnum:], uint16(count+1))
	file = append(file, make([]byte, at-len(file))...)
	for i := range uint64(pages * page / 8) {
		file = le.AppendUint64(file, i*0x9e3779b97f4a7c15)
	}
	return file, nil
}
