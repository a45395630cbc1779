package tui

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"google.golang.org/protobuf/proto"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/fake"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// someKeys are all keys that mean something, and some that do not.
var someKeys = []string{
	"j", "k", "g", "G", "h", "l", "f", "w", "S", "R", "r", "q", "e", "c", "o", "s", "x", "y", "n", "?", ":", "/", "1", "2", "3", "4", "5", "6", "7", "8", "9", "z",
	"C", "D", "U", "M", "P", "X", "i", "t", "m", "+", "-",
	"enter", "esc", "tab", "shift+tab", "up", "down", "left", "right", "home", "end", "pgup", "pgdown", "backspace", "delete",
	"ctrl+a", "ctrl+e", "ctrl+k", "ctrl+u", "ctrl+w", "ctrl+d", "ctrl+f", "ctrl+l", "ctrl+@", "alt+x", "f1", "ä", "界", "\x00",
	"vm show lock", "vm run q --payload count", "server slices a-1", "vm pages lock", "cell load", "op show 40", "drill run lose-a-cell", "doctor", "vm frob", "vm stop ", "state:running", "!a", "'", "\\",
}

// hostile are names that a cluster should never tell, but might.
var hostile = []string{"", "\x1b[2J", "界界界界界界界界界界界界界界界界界界", "a\nb\tc", "\xff\xfe", "\u202eevil", "x/y", "--force", "' ; rm -rf /"}

// monkey drives an App by bytes: keys, sizes, clusters, consoles, losses.
type monkey struct {
	*rig
	bytes []byte
	// cmds counts what the App asked to be run. Nothing of that ever answers here, and the console must not wait for it.
	cmds int
}

func (m *monkey) next() int {
	if len(m.bytes) == 0 {
		return 0
	}
	b := m.bytes[0]
	m.bytes = m.bytes[1:]
	return int(b)
}

func (m *monkey) step() {
	switch n := m.next(); {
	case n < 190:
		if cmd := m.send(keyMsg(someKeys[m.next()%len(someKeys)])); cmd != nil {
			m.cmds++
		}
	case n < 200:
		m.send(tea.WindowSizeMsg{Width: m.next(), Height: m.next() / 3})
	case n < 215:
		m.at = m.at.Add(time.Duration(m.next()) * time.Millisecond * 20)
		m.poll()
	case n < 225:
		m.mutate()
		m.poll()
	case n < 235:
		conn := feed.Conn{Err: fmt.Errorf("lost \x1b[31m%s", hostile[m.next()%len(hostile)]), Attempt: m.next() % 5, RetryAt: m.at.Add(time.Second)}
		m.send(feedMsg(feed.Update{Snapshot: m.app.last, Conn: conn}))
	case n < 240:
		m.send(tickMsg{})
	case n < 250:
		m.chunk()
	case n < 253:
		m.detail()
	default:
		m.send(noticeMsg{notice: notice{text: hostile[m.next()%len(hostile)], role: theme.Bad}})
	}
}

// mutate changes the cluster as no cluster would.
func (m *monkey) mutate() {
	s := &m.src.state
	switch m.next() % 7 {
	case 0:
		*s = fake.State{Status: &api.StatusResponse{}}
	case 1:
		*s = fake.Small()
	case 2:
		*s = fake.Large(200)
	case 3:
		s.VMs = append(slices.Clone(s.VMs), &api.VM{Name: hostile[m.next()%len(hostile)], State: api.VMState(m.next()), Reason: hostile[m.next()%len(hostile)],
			Workers: []*api.Worker{{}, {Server: hostile[m.next()%len(hostile)]}}, Cells: hostile})
	case 4:
		s.Servers = append(slices.Clone(s.Servers), &api.Server{Name: hostile[m.next()%len(hostile)], State: api.ServerState(m.next()), SlotsUsed: 9})
	case 5:
		s.Cells = append(slices.Clone(s.Cells), &api.Cell{Name: hostile[m.next()%len(hostile)], Servers: hostile})
	case 6:
		if len(s.VMs) > 0 {
			s.VMs = s.VMs[:len(s.VMs)/2]
		}
		s.Events = append(slices.Clone(s.Events), &api.Event{Seq: 99, Message: hostile[m.next()%len(hostile)], Type: "x"})
		s.Status = proto.CloneOf(s.Status)
		s.Status.Quorum = !s.Status.Quorum
	}
}

// detail brings what the cluster and processes answer late, to whatever is on the screen by then.
func (m *monkey) detail() {
	name := hostile[m.next()%len(hostile)]
	switch m.next() % 4 {
	case 0:
		m.send(planMsg{line: name, req: &api.StartOperationRequest{}, op: &api.Operation{Subject: name, Steps: []*api.OperationStep{{}, {Vm: name, Note: name}}}})
	case 1:
		m.send(drillsMsg{list: []drillInfo{{Name: name, About: name}}})
	case 2:
		m.send(tea.MouseMsg{X: m.next(), Y: m.next() / 4, Action: tea.MouseActionPress, Button: tea.MouseButton(m.next() % 8)})
	case 3:
		s := &m.src.state
		s.Slices = map[string]*api.SlicesResponse{"a-1": {Server: "a-1", NowMicros: uint64(m.next()) << 12, Slices: []*api.Slice{
			{Vm: name, BeginMicros: uint64(m.next()) << 12, EndMicros: uint64(m.next()) << 12, Slots: []uint32{uint32(m.next())}}, {},
		}}}
		s.Maps = map[string]*api.PageMapResponse{"lock": {VmId: 23, Pages: uint64(m.next()), PagesPerRegion: uint64(m.next() % 3), Holders: []*api.PageHolder{
			{Server: name, Modified: []uint32{uint32(m.next())}}, {Standby: true, Shared: []uint32{1, 2}},
		}}}
		s.Operations = append(slices.Clone(s.Operations), &api.Operation{Id: uint64(m.next()), Subject: name, State: api.OperationState(m.next() % 7)})
		m.poll()
	}
}

// chunk brings console text to the screen on top, if it is a console.
func (m *monkey) chunk() {
	p, ok := m.app.screen().panes[0].(*pager)
	if !ok || len(m.src.readers) == 0 {
		return
	}
	data := make([]byte, m.next())
	for i := range data {
		data[i] = byte(m.next())
	}
	m.send(chunkMsg{pager: p, reader: m.src.readers[len(m.src.readers)-1], chunk: feed.Chunk{Data: data, Done: m.next() > 250, Skipped: uint64(m.next() / 200)}})
}

// run goes through all bytes and then demands that the console is as usable as at the start.
func (m *monkey) run() {
	for i := 0; len(m.bytes) > 0; i++ {
		m.step()
		if err := checkSize(m.app.View(), m.app.width, m.app.height); m.app.height > 0 && err != nil {
			m.t.Fatalf("after %d steps: %v", i+1, err)
		}
	}
	m.src.state = fake.Small()
	m.send(tea.WindowSizeMsg{Width: 100, Height: 30})
	m.poll()
	m.poll()
	for range 3 * depthMax {
		m.press("esc")
	}
	m.wants("Cells and servers (9)", "VMs (6)", "lock", "epoch 7")
	if len(m.app.stack) != 1 || m.app.dialog != nil || m.app.prompt != nil {
		m.t.Fatalf("esc does not lead back: %d screens", len(m.app.stack))
	}
	m.press("?")
	m.wants("Keys of this pane")
	m.press("esc : text:vm_show_tick enter")
	m.wants("VM tick")
	for _, r := range m.src.readers {
		if !r.closed {
			m.t.Error("a console is still being followed")
		}
	}
	if cmd := m.press("ctrl+c"); cmd == nil || cmd() != (tea.QuitMsg{}) {
		m.t.Error("ctrl+c does not quit")
	}
}

func newMonkey(t *testing.T, ascii bool, bytes []byte) *monkey {
	return &monkey{rig: newRig(t, theme.New(ascii, false), 80, 24), bytes: bytes}
}

// TestRandomKeys is the fuzz target below on fixed seeds.
func TestRandomKeys(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 6))
			bytes := make([]byte, 800)
			for i := range bytes {
				bytes[i] = byte(random.Uint32())
			}
			newMonkey(t, seed%2 == 1, bytes).run()
		})
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("jjjj"))
	f.Fuzz(func(t *testing.T, bytes []byte) { newMonkey(t, false, bytes[:min(len(bytes), 4096)]).run() })
}

func FuzzCommand(f *testing.F) {
	for _, s := range []string{"vm show x", "cellvisor vm rm a b --force", "vm run x --payload 'a b' --memory=2G", "'", "--", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, err := parseCommand(line)
		if err == nil && (len(c.args) < c.verb.args || len(c.args) > c.verb.args+c.verb.more) {
			t.Errorf("%q has %d arguments", line, len(c.args))
		}
		words, err := splitWords(line)
		if err != nil {
			return
		}
		again, err := splitWords(quoteWords(words))
		if err != nil || !slices.Equal(words, again) {
			t.Errorf("%q quoted is %q, which reads %q, %v", words, quoteWords(words), again, err)
		}
	})
}
