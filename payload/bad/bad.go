// Package bad holds guest programs for tests, most of which misbehave: a VM that runs one must end as failed, with a reason and a register dump,
// and nothing else may notice. Sources in src, built by payload's Makefile.
package bad

import (
	"embed"
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
