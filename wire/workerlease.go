package wire

import "github.com/cellvisor/cellvisor/ident"

// WorkerLease lets the worker run guests and answer page requests until the time on the host's CLOCK_BOOTTIME, in microseconds.
type WorkerLease struct {
	UntilBootMicros ident.Micros `json:"until_boot_micros"`
}

// WorkerFenced says that the worker stopped its vCPUs because its lease lapsed (On), or that it goes on under a renewed one.
type WorkerFenced struct {
	On bool `json:"on"`
}
