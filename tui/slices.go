package tui

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/bubbles/key"
	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// Time spans that the slice time line may show, and the one that it begins with.
var sliceSpans = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second,
	2 * time.Second, 5 * time.Second, 10 * time.Second}

const firstSliceSpan = 4

var zoomKeys = struct{ in, out key.Binding }{
	in:  bind("+", "a shorter time", "+", "="),
	out: bind("-", "a longer time", "-", "_"),
}

// newSlices shows who ran when on a server: by slots, where a gang is one letter on several slots at a time, and by VMs.
func newSlices(a *App, name string) *screen {
	t := a.theme
	span := firstSliceSpan
	pressed := func(k tea.KeyMsg) bool {
		switch {
		case key.Matches(k, zoomKeys.in):
			span = max(span-1, 0)
		case key.Matches(k, zoomKeys.out):
			span = min(span+1, len(sliceSpans)-1)
		default:
			return false
		}
		return true
	}
	bindings := []key.Binding{zoomKeys.in, zoomKeys.out}
	chart := func(heading string, draw func(timeline) []string) *canvas {
		p := &canvas{theme: t, name: heading, bindings: bindings, pressed: pressed}
		p.draw = func(s *feed.Snapshot, width, _ int) []string {
			if s.Slices.GetServer() != name {
				return []string{t.Paint(theme.Dim, t.Fit("  the server has not told who ran", width))}
			}
			return draw(newTimeline(t, s.Slices, sliceSpans[span], width))
		}
		p.heading = func() string { return heading + ", the last " + spanText(sliceSpans[span]) }
		return p
	}
	slots := chart("Slots of "+name, timeline.bySlots)
	vms := chart("VMs on "+name, timeline.byVMs)
	slots.pressed = func(k tea.KeyMsg) bool { vms.stale = true; return pressed(k) }
	vms.pressed = func(k tea.KeyMsg) bool { slots.stale = true; return pressed(k) }
	return &screen{
		theme: t, crumb: "slices", command: "server slices " + name, about: target{aServer, name}, want: feed.Want{Slices: name},
		panes: []pane{slots, vms},
		arrange: func(_ *screen, width, height int) []rect {
			slots.refresh()
			return stack(width, height, min(max(len(slots.drawn), 2)+1, height/2), -1)
		},
	}
}

// spanText formats a span of the time line.
func spanText(d time.Duration) string {
	if d < time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + " s"
}

// timeline places slices on the cells of a line that ends now.
type timeline struct {
	theme      *theme.Theme
	r          *api.SlicesResponse
	begin, end uint64
	cells      int
	width      int
	vms        []string // those seen, sorted: their letters are the positions
}

// sliceLabelCells is the width of the labels at the left.
const sliceLabelCells = 16

func newTimeline(t *theme.Theme, r *api.SlicesResponse, span time.Duration, width int) timeline {
	l := timeline{theme: t, r: r, end: r.GetNowMicros(), width: width, cells: max(width-sliceLabelCells-1, 1)}
	l.begin = l.end - min(uint64(span.Microseconds()), l.end)
	for _, s := range r.GetSlices() {
		if name := vmName(s); !slices.Contains(l.vms, name) && l.share(s, 0, l.cells) > 0 {
			l.vms = append(l.vms, name)
		}
	}
	slices.Sort(l.vms)
	return l
}

// vmName names the VM of a slice, which may be gone by now.
func vmName(s *api.Slice) string {
	if s.GetVm() == "" {
		return "VM " + number(s.GetVmId())
	}
	return s.GetVm()
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// letter is how a VM is drawn on slots.
func letter(i int) string {
	if i < 0 {
		return "?"
	}
	return letters[i%len(letters) : i%len(letters)+1]
}

// share is how many permille of the cells [from, to) a slice covers.
func (l timeline) share(s *api.Slice, from, to int) uint64 {
	at := func(cell int) uint64 { return l.begin + (l.end-l.begin)*uint64(cell)/uint64(l.cells) }
	end := s.GetEndMicros()
	if end == 0 {
		end = l.end
	}
	lo, hi := max(at(from), s.GetBeginMicros()), min(at(to), end)
	if hi <= lo || at(to) == at(from) {
		return 0
	}
	return (hi - lo) * 1000 / (at(to) - at(from))
}

// bySlots draws a line for each slot: in every cell the letter of the VM that had it longest.
func (l timeline) bySlots() []string {
	if len(l.r.GetSlices()) == 0 || !l.r.GetConducted() && len(l.vms) == 0 {
		return []string{l.theme.Paint(theme.Dim, l.theme.Fit("  no turns are taken: there are slots for all, so VMs run freely", l.width))}
	}
	bySlot := map[uint32][]*api.Slice{}
	var free []*api.Slice // of unknown slots: CPUs are not bound
	var known []uint32
	for _, s := range l.r.GetSlices() {
		for _, slot := range s.GetSlots() {
			if bySlot[slot] == nil {
				known = append(known, slot)
			}
			bySlot[slot] = append(bySlot[slot], s)
		}
		if len(s.GetSlots()) == 0 && l.share(s, 0, l.cells) > 0 {
			free = append(free, s)
		}
	}
	slices.Sort(known)
	var lines []string
	for _, slot := range known {
		lines = append(lines, l.line("slot "+number(slot), bySlot[slot]))
	}
	if len(free) > 0 {
		lines = append(lines, l.line("any slot", free))
	}
	return append(lines, l.scale())
}

func (l timeline) line(label string, all []*api.Slice) string {
	pieces := []piece{{l.theme.Fit("  "+l.theme.Clean(label), sliceLabelCells), theme.Plain}}
	for cell := range l.cells {
		best, most := -1, uint64(0)
		for _, s := range all {
			if n := l.share(s, cell, cell+1); n > most {
				best, most = slices.Index(l.vms, vmName(s)), n
			}
		}
		if best < 0 {
			pieces = append(pieces, piece{l.theme.Dot, theme.Dim})
		} else {
			pieces = append(pieces, piece{letter(best), theme.Hue(best)})
		}
	}
	return paintLine(l.theme, l.width, pieces...)
}

// byVMs draws a line for each VM: when its gang ran, on how many slots here, and with which servers together.
func (l timeline) byVMs() []string {
	if len(l.vms) == 0 {
		return []string{l.theme.Paint(theme.Dim, l.theme.Fit("  no VM took turns in this time", l.width))}
	}
	lines := make([]string, 0, len(l.vms)+1)
	for i, name := range l.vms {
		var own []*api.Slice
		for _, s := range l.r.GetSlices() {
			if vmName(s) == name {
				own = append(own, s)
			}
		}
		lines = append(lines, l.vmLine(i, own))
	}
	return append(lines, l.scale())
}

func (l timeline) vmLine(i int, own []*api.Slice) string {
	t := l.theme
	tail := gangText(own[len(own)-1])
	tailCells := min(28, l.width/4)
	pieces := []piece{{letter(i) + " ", theme.Hue(i)}, {t.Fit(t.Clean(l.vms[i]), sliceLabelCells-2), theme.Strong}}
	cells := max(l.cells-tailCells, 1)
	short := l
	short.cells = cells
	total := uint64(0)
	for cell := range cells {
		n := uint64(0)
		for _, s := range own {
			n += short.share(s, cell, cell+1)
		}
		total += n
		switch {
		case n >= 667:
			pieces = append(pieces, piece{t.Full, theme.Hue(i)})
		case n >= 100:
			pieces = append(pieces, piece{t.Half, theme.Hue(i)})
		default:
			pieces = append(pieces, piece{t.Dot, theme.Dim})
		}
	}
	share := number(total/uint64(cells)/10) + "%"
	return paintLine(t, l.width, append(pieces, piece{" " + t.Fit(t.Clean(t.FitRight(share, 4)+" "+tail), tailCells), theme.Plain})...)
}

// gangText says what the gang of a slice is: "2 slots, with b-1".
func gangText(s *api.Slice) string {
	text := ""
	if n := len(s.GetSlots()); n > 0 {
		text = plural(n, "slot", "slots")
	}
	if with := s.GetWith(); len(with) > 0 {
		text = strings.TrimPrefix(text+", with "+strings.Join(with, " "), ", ")
	}
	return text
}

// scale is the line below: the time at its ends.
func (l timeline) scale() string {
	t := l.theme
	from := "-" + spanText(time.Duration(l.end-l.begin)*time.Microsecond)
	return t.Paint(theme.Dim, t.Fit(theme.Spaces(sliceLabelCells)+from+t.FitRight("now", l.cells-theme.Width(from)), l.width))
}
