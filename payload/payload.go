// Package payload holds the built-in guest programs: small static ELF64 images for tests, drills and benchmarks that keep the payload ABI,
// version 1. Their C sources are in src, the committed images in images; `make -C payload` rebuilds them with gcc.
//
// src/payload.h is the ABI in C, for one's own payloads too.
package payload

import (
	"embed"
	"fmt"
	"strings"
)

//go:generate make

//go:embed images/*.elf
var images embed.FS

// Info describes a built-in payload for people.
type Info struct {
	Name string
	Doc  string // one line: what it does
	Args string // its arguments, as in "[N] [RATE_HZ]", empty if it takes none
	Help string // what the arguments mean, one line
}

var list = []Info{
	{"count", "vCPU 0 emits 0, 1, 2, … at a steady rate; the others idle", "[N] [RATE_HZ]",
		"N numbers (0 = for ever, default 100) at RATE_HZ a second (0 = as fast as it goes, default 100)"},
	{"dirty", "writes a given share of memory at a given rate", "[PERCENT] [RATE_PER_S] [SECONDS]",
		"PERCENT of memory (default 10), RATE_PER_S pages written a second in all (default 1000, 0 = as fast as it goes), for SECONDS (default 10, 0 = for ever)"},
	{"fault", "measures what the first touch of a page costs that another vCPU has written; the samples are its output, see ParseFault", "[N] [MODE] [MEASURERS] [SHARERS]",
		"N pages a series (default 1000); MODE all, local, read, read-seq, write, write-seq or shared (default all); the last MEASURERS vCPUs touch (default 1), vCPU 0 has written, vCPUs 1 to SHARERS have read (default those left, at most 3)"},
	{"hello", "every vCPU says hello in turn, vCPU 0 emits 0 to 9", "[WORDS]", "WORDS are printed"},
	{"idle", "all vCPUs idle for ever", "[MICROS]", "MICROS at a time (default 1000000, 0 = as often as it goes)"},
	{"journal", "keeps a checksummed journal on the first disk: writes, flushes, emits the record's number, verifies all of it again and again", "[N] [RATE_HZ] [BLOCKS] [append|verify]",
		"N records (0 = for ever, default 100) at RATE_HZ a second (0 = as fast as it goes, default 100) in BLOCKS blocks of 4KiB (0 = the whole disk, default); verify only reads"},
	{"litmus", "memory-order tests between vCPUs; fails on an outcome that x86-TSO forbids", "[ROUNDS] [TEST]",
		"ROUNDS of each test (default 100000); TEST all, or one of sb, sbf, sbx, mp, lb, 22w, s, coww, corr, corw, cowr, wrc, iriw, canary (must fail) (default all)"},
	{"lock", "all vCPUs increment counters under a spinlock and by atomics; the sums must be exact", "[ROUNDS] [spin]",
		"ROUNDS increments of each counter by each vCPU (default 5000); spin: who waits never idles"},
	{"phases", "vCPUs that change what they share: pages of their own, a table, a pipe, a lock; emits the microseconds of each of the four", "[ROUNDS] [SCALE] [LINGER_MS]",
		"ROUNDS of all four phases (default 6), SCALE of each phase's work (default 10); it idles for LINGER_MS before it ends (default 0)"},
	{"phoenix", "crashes itself again and again, and checks after every boot that no byte of its disk is read wrong; needs a disk", "[CRASHES] [BLOCKS] [MODE]",
		"CRASHES before it ends (default 100; run with --crash-limit 0), BLOCKS of 4 KiB (default 64); MODE crash (the default), or read: only read and verify at each boot"},
	{"rows", "reads and changes rows of a table, as a database does; emits the transactions a second with ever more of them outside its hot set", "[MIB] [HOT_PERCENT] [WAIT_S] [SECONDS] [commit|-] [SLICES]",
		"MIB of table (default all memory), HOT_PERCENT of it hot (default 10); it idles for WAIT_S when the table is full (default 0), and measures for SECONDS (default 1) at 0, 1, 10 and 100 cold rows in 10000; commit: the same again with commits to a log on its disk; SLICES: so many rates for each share, after a 0 when it begins, instead of their median"},
	{"walk", "fills memory with a pattern, reads it from other vCPUs, checks it", "[MIB] [PASSES]",
		"MIB of memory (default and at most all above 4 MiB), PASSES times (default 2)"},
}

// List describes all built-in payloads, sorted by name.
func List() []Info { return append([]Info(nil), list...) }

// Lookup describes one built-in payload.
func Lookup(name string) (Info, bool) {
	for _, info := range list {
		if info.Name == name {
			return info, true
		}
	}
	return Info{}, false
}

// Open returns the ELF image of a built-in payload. The caller must not change it. The error for a name that is none names those that are.
func Open(name string) ([]byte, error) {
	if _, ok := Lookup(name); !ok {
		names := make([]string, len(list))
		for i, info := range list {
			names[i] = info.Name
		}
		return nil, fmt.Errorf("no built-in payload %q: there are %s", name, strings.Join(names, ", "))
	}
	image, err := images.ReadFile("images/" + name + ".elf")
	if err != nil {
		return nil, fmt.Errorf("built-in payload %q: %w", name, err)
	}
	return image, nil
}
