package paging

import (
	"cmp"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// Part is a VM part on a server, as far as the division of the server's memory goes.
type Part struct {
	VM       ident.VMID
	Bytes    ident.Bytes // the VM's memory: no part needs more
	Limit    ident.Bytes // what the part was last told that it may hold; 0: nothing yet
	Resident ident.Bytes // what it said last that it holds
	FileUsed ident.Bytes // of the paging file
}

// Share is what a part may hold from now on.
type Share struct {
	Limit ident.Bytes
	File  ident.Bytes
}

// LeastBytes is what any part may hold: an instruction with its operands and page tables must fit, or nothing ever advances.
const LeastBytes = ident.MiB

// Divide divides memory bytes of a server, and file bytes of paging files, among the parts on it. A part that does not use what it has may hold
// somewhat more than it uses; those that press against their limits share the rest evenly, each at most what its VM has. What a part is given it may
// hold at once, so nothing is given that another has not let go of yet: limits fall first and rise when the memory is free. At no time do limits, and
// what is still held above them, sum up to more than memory unless they did before; parts' least shares excepted.
func Divide(memory, file ident.Bytes, parts []Part) []Share {
	want := make([]ident.Bytes, len(parts))
	order := make([]int, len(parts))
	var fileUsed ident.Bytes
	for i, p := range parts {
		order[i] = i
		fileUsed += p.FileUsed
		want[i] = min(p.Bytes, p.Resident+p.Resident/4+4*LeastBytes)
		if p.Limit > 0 && p.Resident+p.Resident/8 >= p.Limit { // pressed
			want[i] = p.Bytes
		}
		want[i] = max(want[i], LeastBytes)
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(want[a], want[b]), cmp.Compare(parts[a].VM, parts[b].VM))
	})
	out := make([]Share, len(parts))
	left := memory
	for n, i := range order { // the smallest wish first: an even share of what is left, or less if it wants less
		even := left / ident.Bytes(len(order)-n)
		out[i].Limit = max(LeastBytes, min(want[i], even)/ident.PageSize*ident.PageSize)
		left -= min(left, out[i].Limit)
	}
	for n, i := range order { // what nobody presses for may be held too
		more := min(left/ident.Bytes(len(order)-n), parts[i].Bytes-min(parts[i].Bytes, out[i].Limit)) / ident.PageSize * ident.PageSize
		out[i].Limit += more
		left -= more
	}
	var held ident.Bytes
	for i, p := range parts {
		held += max(p.Resident, min(p.Limit, out[i].Limit))
	}
	room := memory - min(memory, held)
	for i, p := range parts {
		now := max(p.Resident, min(p.Limit, out[i].Limit))
		if out[i].Limit > now {
			more := min(out[i].Limit-now, room)
			room -= more
			out[i].Limit = max((now+more)/ident.PageSize*ident.PageSize, LeastBytes)
		}
		out[i].File = p.FileUsed + (file-min(file, fileUsed))/ident.Bytes(len(parts))
	}
	return out
}
