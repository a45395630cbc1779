package balancer

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// placeSpan spreads a VM evenly over the cells of its span. Which servers of a cell take part depends on how many are needed for the
// slots and the memory; the memory share of a part depends on how many parts there are in all. So it tries with one server a cell first,
// then allows more, until all fit.
func placeSpan(all, open []Server, req Request) ([]Part, error) {
	groups, err := spanGroups(all, open, req)
	if err != nil {
		return nil, err
	}
	want, err := spanCounts(groups, req)
	if err != nil {
		return nil, err
	}
	most := 1
	for _, g := range groups {
		most = max(most, len(g))
	}
	for perCell := 1; perCell <= most; perCell++ {
		if parts := trySpan(groups, want, perCell, req.MemoryBytes); parts != nil {
			return parts, nil
		}
	}
	return nil, tooMuch(slices.Concat(groups...), req, "the span "+spanName(req.Span))
}

func spanName(span []ident.CellName) string {
	names := make([]string, len(span))
	for i, c := range span {
		names[i] = string(c)
	}
	return strings.Join(names, ",")
}

// spanGroups returns the open servers of each cell of the span that gets vCPUs: of more cells than vCPUs, only the first ones do.
func spanGroups(all, open []Server, req Request) ([][]Server, error) {
	var groups [][]Server
	for _, cell := range req.Span {
		g := inCell(open, cell)
		if len(g) == 0 {
			return nil, refuse(ErrNoCapacity, "cell %s of the span takes no VM parts: %s", cell, whyClosed(inCell(all, cell)))
		}
		groups = append(groups, g)
	}
	return groups[:min(len(groups), req.VCPUs)], nil
}

// spanCounts deals the vCPUs out over the cells, evenly, as far as their slots reach.
func spanCounts(groups [][]Server, req Request) ([]int, error) {
	var asServers []Server
	detail := make([]string, len(groups))
	for i, g := range groups {
		asServers = append(asServers, Server{Slots: slots(g)})
		detail[i] = fmt.Sprintf("cell %s has %d", g[0].Cell, slots(g))
	}
	if have := slots(asServers); req.VCPUs > have {
		return nil, refuse(ErrTooLarge, "%d vCPUs asked for, but the span %s has %d slots (%s)", req.VCPUs, spanName(req.Span), have, strings.Join(detail, ", "))
	}
	return spread(asServers, req.VCPUs), nil
}

// trySpan places with at most perCell servers of each cell, or returns nil if they do not fit.
func trySpan(groups [][]Server, want []int, perCell int, memory ident.Bytes) []Part {
	total := 0
	for i, g := range groups {
		total += min(perCell, len(g), want[i])
	}
	if total > ident.MaxParts {
		return nil
	}
	each := share(memory, total)
	var chosen []Server
	var counts []int
	for i, g := range groups {
		some := pick(g, min(perCell, len(g), want[i]), want[i], each)
		if some == nil {
			return nil
		}
		chosen = append(chosen, some...)
		counts = append(counts, spread(some, want[i])...)
	}
	return number(chosen, counts)
}
