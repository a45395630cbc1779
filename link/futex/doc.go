// Package futex lets threads wait for each other without the Go scheduler: a goroutine that is locked to its thread, such as one that serves pages or
// runs a vCPU, sleeps in the kernel, and whoever has what it waits for wakes that very thread. See futex(2).
package futex
