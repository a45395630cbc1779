package linuxtest

import _ "embed"

//go:embed keeper.bin
var keeper []byte

// Keeper is a kernel that counts by its timer, keeps the count in memory and on a disk, and prints each number: see src/keeper.c.
func Keeper() []byte { return Kernel(keeper) }
