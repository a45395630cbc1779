package linuxtest

import (
	_ "embed"
	"encoding/binary"
	"slices"
)

//go:embed smp.bin
var smp []byte

// SMPText is what the kernel of SMP prints.
const SMPText = "ABPTNBI\n"

// smpRounds is where the kernel of SMP has the number of its rounds.
const smpRounds = 8

// SMP is a kernel for two processors, which may live on different servers: see src/smp.S. They wake each other so many times.
func SMP(rounds uint64) []byte {
	code := slices.Clone(smp)
	binary.LittleEndian.PutUint64(code[smpRounds:], rounds)
	return Kernel(code)
}
