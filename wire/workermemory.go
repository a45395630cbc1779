package wire

import "github.com/cellvisor/cellvisor/ident"

// WorkerMemory says how much of its guest's memory the part may hold in this host's, and how much may be in its paging file. What is above the
// limit leaves at once.
type WorkerMemory struct {
	LimitBytes ident.Bytes `json:"limit_bytes"`
	FileBytes  ident.Bytes `json:"file_bytes"`
	Borrow     bool        `json:"borrow,omitempty"` // at the start: other servers may hold pages for it, see WorkerLenders
}

// WorkerLenders says which servers hold pages for the part, and how many. What is above a limit moves elsewhere, as does all that is at a lender which is
// not named. It has the number of the newest in WorkerPaging.LendersSeq once that is done.
type WorkerLenders struct {
	Seq     uint64         `json:"seq"`
	Lenders []WorkerLender `json:"lenders,omitempty"`
}

// WorkerLender is a server that holds pages for a part of a VM. It listens for that part only, as the part As of a plane between the two, on which the
// borrower is part 0.
type WorkerLender struct {
	As         ident.Part       `json:"as"`
	Server     ident.ServerID   `json:"server"`
	Name       ident.ServerName `json:"name"`
	Cell       ident.CellName   `json:"cell"`
	Addr       string           `json:"addr"`
	LimitBytes ident.Bytes      `json:"limit_bytes"`
}

// WorkerLoan is what a part holds at a lender: the size of the space there in which its pages lie.
type WorkerLoan struct {
	WorkerLender
	HeldBytes ident.Bytes `json:"held_bytes"`
}

// WorkerPaging is what became of pages for which there was no room, since the worker started. It is of a worker that was given a WorkerMemory.
type WorkerPaging struct {
	LimitBytes  ident.Bytes  `json:"limit_bytes"`
	FileBytes   ident.Bytes  `json:"file_bytes"`                  // in the paging file now
	In          uint64       `json:"in"`                          // pages brought in again
	Out         uint64       `json:"out"`                         // pages that left, for the paging file or a lender
	Dropped     uint64       `json:"dropped"`                     // pages not written, since a disk has them
	Zero        uint64       `json:"zero"`                        // pages not written, since they were zeros
	Again       uint64       `json:"again"`                       // pages that were used again before they left
	InMicrosSum uint64       `json:"in_micros_sum"`               // that pages took to come in
	InMicros    ident.Micros `json:"in_micros_typical,omitempty"` // median of the last ones
	Error       string       `json:"error,omitempty"`             // why pages cannot be written out, for people

	LendersSeq uint64       `json:"lenders_seq,omitempty"` // of the last WorkerLenders that was carried out
	Loans      []WorkerLoan `json:"loans,omitempty"`
	Lent       uint64       `json:"lent,omitempty"`     // of Out: pages that went to lenders
	Returned   uint64       `json:"returned,omitempty"` // pages moved away from lenders that wanted their memory back
}
