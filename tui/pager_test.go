package tui

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/tui/feed"
)

func TestConsole(t *testing.T) {
	r := newRig(t, plainTheme(), 80, 24)
	r.press("j j c")
	reader := r.src.readers[0]
	if reader.vm != "lock" || reader.log != feed.Console {
		t.Fatalf("follows %+v", reader)
	}
	p := r.app.screen().panes[0].(*pager)
	send := func(c feed.Chunk) { r.send(chunkMsg{pager: p, reader: reader, chunk: c}) }
	send(feed.Chunk{Data: []byte("hello \x1b[31mred\x1b[0m\x1b]0;evil\x07\nback\rover\r\nbell\x07 half")})
	r.wants("Console of lock · following", "hello red\n", "\nover\n", "bell· half\n", "$ cellvisor vm console lock --follow")
	send(feed.Chunk{Data: []byte(" line\n")})
	r.wants("bell· half line\n")
	send(feed.Chunk{Err: fmt.Errorf("link down")})
	r.wants("interrupted, trying again: link down")
	for i := range 100 {
		send(feed.Chunk{Data: fmt.Appendf(nil, "line %d\n", i)})
	}
	r.wants("line 99")
	r.press("g")
	r.wants("hello red")
	send(feed.Chunk{Data: []byte("more\n")})
	r.lacks("more")
	r.press("G")
	r.wants("more")
	r.press("/ text:line_5 enter")
	r.wants("line 5\n", "line 59")
	r.lacks("line 60")
	send(feed.Chunk{Done: true})
	r.wants("the VM has ended")
	r.press("esc esc")
	if !reader.closed {
		t.Error("the reader is not closed")
	}
}

func TestPagerIsBounded(t *testing.T) {
	p := newPager(plainTheme(), "x")
	p.setSize(80, 20)
	p.append([]byte(strings.Repeat("y\n", 3*pagerLines)))
	p.append([]byte(strings.Repeat("z", 10*pagerLineBytes)))
	if p.size() > pagerLines || p.dropped < 2*pagerLines {
		t.Errorf("%d lines kept, %d dropped", p.size(), p.dropped)
	}
	for _, l := range p.kept {
		if len(l) > pagerLineBytes {
			t.Fatalf("a line of %d bytes", len(l))
		}
	}
}
