package view

import "github.com/cellvisor/cellvisor/api"

// Paging tells what became of a worker's pages for which there was no room in its server's memory.
type Paging struct {
	Limit       uint64 `json:"limit_bytes"`
	File        uint64 `json:"file_bytes"`
	In          uint64 `json:"in"`
	Out         uint64 `json:"out"`
	Dropped     uint64 `json:"dropped"`
	Zero        uint64 `json:"zero"`
	Again       uint64 `json:"again"`
	InMicros    uint64 `json:"in_micros"`
	InMicrosSum uint64 `json:"in_micros_sum"`
	Error       string `json:"error,omitempty"`
	Loans       []Loan `json:"loans,omitempty"`
	Lent        uint64 `json:"lent,omitempty"`
	Returned    uint64 `json:"returned,omitempty"`
}

// Loan is memory that another server lends to the part.
type Loan struct {
	Server string `json:"server"`
	Cell   string `json:"cell"`
	Limit  uint64 `json:"limit_bytes"`
	Held   uint64 `json:"held_bytes"`
}

func ofPaging(p *api.PagingCounters) *Paging {
	if p == nil {
		return nil
	}
	var loans []Loan
	for _, o := range p.GetLoans() {
		loans = append(loans, Loan{Server: o.GetServer(), Cell: o.GetCell(), Limit: o.GetLimitBytes(), Held: o.GetHeldBytes()})
	}
	return &Paging{Loans: loans, Lent: p.GetLent(), Returned: p.GetReturned(), Limit: p.GetLimitBytes(), File: p.GetFileBytes(), In: p.GetIn(), Out: p.GetOut(), Dropped: p.GetDropped(), Zero: p.GetZero(),
		Again: p.GetAgain(), InMicros: p.GetInMicros(), InMicrosSum: p.GetInMicrosSum(), Error: p.GetError()}
}
