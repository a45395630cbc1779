package tui

import (
	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// newPageMap shows which part of a VM holds which of its pages: one cell a region, with the letter and colour of who holds most of it.
func newPageMap(a *App, name string) *screen {
	t := a.theme
	pages := &canvas{theme: t, name: "Pages of " + name}
	pages.draw = func(s *feed.Snapshot, width, height int) []string { return mapLines(t, s, name, width, height) }
	pages.heading = func() string {
		m := mapNow(pages.snapshot, name)
		if m == nil {
			return pages.name
		}
		return pages.name + " " + t.Dot + " a cell is " + size(cellPages(m, pages.width, pages.height)*pageBytes)
	}
	legend := &canvas{theme: t, name: "Who holds what"}
	legend.draw = func(s *feed.Snapshot, width, _ int) []string { return legendLines(t, mapNow(s, name), width) }
	return &screen{
		theme: t, crumb: "pages", command: "vm pages " + name, about: target{aVM, name}, want: feed.Want{Map: name},
		panes: []pane{pages, legend},
		arrange: func(_ *screen, width, height int) []rect {
			legend.refresh()
			return stack(width, height, -1, min(max(len(legend.drawn), 1)+1, height/2))
		},
	}
}

const pageBytes = 4096

// mapNow is the map of the VM if it has come, of this VM and not of an earlier one of its name.
func mapNow(s *feed.Snapshot, name string) *api.PageMapResponse {
	if s == nil {
		return nil
	}
	if vm := s.VM(name); vm == nil || vm.GetId() != s.Map.GetVmId() {
		return nil
	}
	return s.Map
}

// offsetCells is the width of the addresses at the left of the map.
const offsetCells = 12

// cellPages is how many pages a cell of the map stands for: the fewest with which it fits.
func cellPages(m *api.PageMapResponse, width, height int) uint64 {
	room := uint64(max(width-offsetCells-1, 1)) * uint64(max(height, 1))
	per := max(m.GetPagesPerRegion(), 1)
	for (m.GetPages()+per-1)/per > room {
		per *= 2
	}
	return per
}

// held sums up what a holder has of the cell's regions.
func held(h *api.PageHolder, from, to int) (shared, modified uint64) {
	for i := from; i < to; i++ {
		if i < len(h.GetShared()) {
			shared += uint64(h.GetShared()[i])
		}
		if i < len(h.GetModified()) {
			modified += uint64(h.GetModified()[i])
		}
	}
	return shared, modified
}

// mapCell is how a cell is drawn: the letter of the part that holds most of it, in upper case where that part may write most of what it holds; Many
// where several parts read the same.
func mapCell(t *theme.Theme, m *api.PageMapResponse, from, to int) piece {
	best, most, bestShared := -1, uint64(0), uint64(0)
	var sharedAll, modifiedAll uint64
	for i, h := range m.GetHolders() {
		if h.GetStandby() {
			continue
		}
		shared, modified := held(h, from, to)
		sharedAll, modifiedAll = sharedAll+shared, modifiedAll+modified
		if n := shared + modified; n > most {
			best, most, bestShared = i, n, shared
		}
	}
	switch {
	case best < 0:
		return piece{t.Dot, theme.Dim}
	case sharedAll > modifiedAll && bestShared < sharedAll:
		return piece{t.Many, theme.Strong}
	case bestShared*2 > most:
		return piece{lower(letter(best)), theme.Hue(best)}
	}
	return piece{letter(best), theme.Hue(best)}
}

func lower(s string) string {
	if s >= "A" && s <= "Z" {
		return string(s[0] + 'a' - 'A')
	}
	return s
}

func mapLines(t *theme.Theme, s *feed.Snapshot, name string, width, height int) []string {
	m := mapNow(s, name)
	switch vm := s.VM(name); {
	case vm == nil:
		return []string{t.Paint(theme.Dim, t.Fit("  there is no VM of that name", width))}
	case vm.GetState().Ended():
		return []string{t.Paint(theme.Dim, t.Fit("  the VM has ended: its memory is free", width))}
	case m == nil:
		return []string{t.Paint(theme.Dim, t.Fit("  asking the VM's parts "+t.Ellipsis, width))}
	}
	per := cellPages(m, width, height)
	perCell := int(per / max(m.GetPagesPerRegion(), 1))
	columns := uint64(max(width-offsetCells-1, 1))
	var lines []string
	for page := uint64(0); page < m.GetPages(); {
		pieces := []piece{{t.FitRight(size(page*pageBytes), offsetCells-2) + "  ", theme.Dim}}
		for c := uint64(0); c < columns && page < m.GetPages(); c++ {
			region := int(page / max(m.GetPagesPerRegion(), 1))
			pieces = append(pieces, mapCell(t, m, region, region+perCell))
			page += per
		}
		lines = append(lines, paintLine(t, width, pieces...))
	}
	return lines
}

// legendLines tells what the letters mean, with the sums.
func legendLines(t *theme.Theme, m *api.PageMapResponse, width int) []string {
	if m == nil {
		return nil
	}
	var lines []string
	for i, h := range m.GetHolders() {
		shared, modified := held(h, 0, max(len(h.GetShared()), len(h.GetModified())))
		glyph := letter(i) + "/" + lower(letter(i))
		text := t.FitRight(size(modified*pageBytes), 10) + " to write, " + t.FitRight(size(shared*pageBytes), 10) + " to read"
		switch {
		case h.GetStandby():
			glyph, text = "-", t.FitRight(size(modified*pageBytes), 10)+" replica, for when the VM must be recovered"
		case len(h.GetModified()) == 0:
			text = t.FitRight("?", 10) + " it did not answer"
		}
		name := t.Fit(t.Clean(h.GetServer()), 10)
		lines = append(lines, paintLine(t, width, piece{"  " + t.Fit(glyph, 4), theme.Hue(i)}, piece{name + " cell " + t.Fit(t.Clean(h.GetCell()), 8) + text, theme.Plain}))
	}
	return append(lines, t.Paint(theme.Dim, t.Fit("  "+t.Many+"   several read the same pages    "+t.Dot+"   never touched, or zero", width)))
}
