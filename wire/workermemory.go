package wire

import "github.com/cellvisor/cellvisor/ident"

// WorkerMemory says how much of its guest's memory the part may hold in this host's, and how much may be in its paging file. What is above the
// limit leaves at once.
type WorkerMemory struct {
	LimitBytes ident.Bytes `json:"limit_bytes"`
	FileBytes  ident.Bytes `json:"file_bytes"`
}

// WorkerPaging is what became of pages for which there was no room, since the worker started. It is of a worker that was given a WorkerMemory.
type WorkerPaging struct {
	LimitBytes  ident.Bytes  `json:"limit_bytes"`
	FileBytes   ident.Bytes  `json:"file_bytes"`                  // in the paging file now
	In          uint64       `json:"in"`                          // pages brought in again
	Out         uint64       `json:"out"`                         // pages written to the paging file
	Dropped     uint64       `json:"dropped"`                     // pages not written, since a disk has them
	Zero        uint64       `json:"zero"`                        // pages not written, since they were zeros
	Again       uint64       `json:"again"`                       // pages that were used again before they left
	InMicrosSum uint64       `json:"in_micros_sum"`               // that pages took to come in
	InMicros    ident.Micros `json:"in_micros_typical,omitempty"` // median of the last ones
	Error       string       `json:"error,omitempty"`             // why pages cannot be written out, for people
}
