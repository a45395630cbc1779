package linuxtest

import _ "embed"

//go:embed smp.bin
var smp []byte

// SMPText is what the kernel of SMP prints.
const SMPText = "ABPTNBI\n"

// SMP is a kernel for two processors, which may live on different servers: see src/smp.S.
func SMP() []byte { return Kernel(smp) }
