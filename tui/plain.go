package tui

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// plain writes a line at each change of the cluster: what the console is where there is no terminal. It returns when ctx ends (nil) or
// nobody reads any more.
func plain(ctx context.Context, out io.Writer, updates <-chan feed.Update) error {
	p := plainWriter{out: out, theme: theme.New(true, false)}
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-updates:
			if err := p.update(u); err != nil {
				return fmt.Errorf("console: %w", err)
			}
		}
	}
}

// plainWriter writes what differs from what it wrote last.
type plainWriter struct {
	out    io.Writer
	theme  *theme.Theme
	status string
	things map[string]string
}

func (p *plainWriter) update(u feed.Update) error {
	if u.Conn.Err != nil {
		return p.line(stampOf(time.Now()), "no answer: "+api.Message(u.Conn.Err))
	}
	s := u.Snapshot
	if err := p.line(stampOf(s.At), statusLine(s.Status)); err != nil {
		return err
	}
	now := make(map[string]string)
	for _, x := range s.Servers {
		now["server "+x.GetName()] = x.GetState().Word()
	}
	for _, x := range s.VMs {
		text := x.GetState().Word()
		if reason := vmReason(x); reason != "" {
			text += ": " + reason
		}
		now["VM "+x.GetName()] = text
	}
	return p.changes(s, now)
}

func stampOf(at time.Time) string { return at.Local().Format("15:04:05") }

// statusLine is the line of `cellvisor status --watch`.
func statusLine(st *api.StatusResponse) string {
	quorum, leader := "yes", st.GetLeader()
	if !st.GetQuorum() {
		quorum = "no"
	}
	if leader == "" {
		leader = "-"
	}
	return fmt.Sprintf("epoch %d  quorum %s  leader %s  cells %d/%d  servers %d/%d  VMs %d running, %d listed", st.GetEpoch(), quorum, leader,
		st.GetCellsLive(), st.GetCellsTotal(), st.GetServersLive(), st.GetServersTotal(), st.GetVmsRunning(), st.GetVmsTotal())
}

// changes writes the servers and VMs that changed, in the order of the lists.
func (p *plainWriter) changes(s *feed.Snapshot, now map[string]string) error {
	var names []string
	for _, x := range s.Servers {
		names = append(names, "server "+x.GetName())
	}
	for _, x := range s.VMs {
		names = append(names, "VM "+x.GetName())
	}
	for _, name := range names {
		if p.things[name] == now[name] {
			continue
		}
		if err := p.write(stampOf(s.At), name+" "+now[name]); err != nil {
			return err
		}
	}
	p.things = now
	return nil
}

// line writes a line about the whole cluster unless the last one said the same.
func (p *plainWriter) line(stamp, text string) error {
	if text == p.status {
		return nil
	}
	p.status = text
	return p.write(stamp, text)
}

func (p *plainWriter) write(stamp, text string) error {
	_, err := fmt.Fprintf(p.out, "%s  %s\n", stamp, strings.TrimRight(p.theme.Clean(text), " "))
	return err
}
