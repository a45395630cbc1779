package tui

import (
	"context"
	"fmt"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
)

// logReader is what a console screen reads: feed.Follower, or a test's.
type logReader interface {
	Next(context.Context) (feed.Chunk, bool)
	Close()
}

// chunkMsg brings the next piece of a log to the screen that reads it.
type chunkMsg struct {
	pager  *pager
	reader logReader
	chunk  feed.Chunk
}

// newLog shows a VM's console or output log and follows its end. It only reads: guests have no input.
func newLog(a *App, name string, log feed.Log) *screen {
	title, command := "Console of "+name, "vm console "+name+" --follow"
	if log == feed.Output {
		title, command = "Output of "+name, "vm output "+name+" --follow"
	}
	p := newPager(a.theme, title)
	p.note = "waiting"
	s := &screen{
		theme: a.theme, crumb: title, command: command, about: target{aVM, name}, panes: []pane{p}, arrange: whole,
	}
	var reader logReader
	s.opened = func(a *App) tea.Cmd {
		reader = a.source.Follow(a.ctx, name, log)
		return a.readLog(p, reader)
	}
	s.closed = func(*App) { reader.Close() }
	return s
}

// readLog waits for the next piece. One screen has one such command under way.
func (a *App) readLog(p *pager, r logReader) tea.Cmd {
	return func() tea.Msg {
		c, ok := r.Next(a.ctx)
		if !ok {
			return nil
		}
		return chunkMsg{pager: p, reader: r, chunk: c}
	}
}

// onChunk shows a piece and waits for the next one, at the pace at which screens are drawn.
func (a *App) onChunk(m chunkMsg) tea.Cmd {
	p, c := m.pager, m.chunk
	if c.Dropped > 0 {
		p.append(fmt.Appendf(nil, "\n[%d before this are not kept any more: the log has reached its bound]\n", c.Dropped))
	}
	if c.Skipped > 0 {
		p.append([]byte("\n[" + size(c.Skipped) + " left out: the guest writes faster than can be shown]\n"))
	}
	p.append(c.Data)
	switch {
	case c.Done && c.Err != nil:
		p.note = api.Message(c.Err)
	case c.Done:
		p.note = "the VM has ended, this is all"
	case c.Err != nil:
		p.note = "interrupted, trying again: " + api.Message(c.Err)
	default:
		p.note = "following"
	}
	if c.Done {
		return nil
	}
	read := a.readLog(p, m.reader)
	return tea.Tick(feed.MinInterval, func(time.Time) tea.Msg { return read() })
}
