package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// isTerminal tells whether w is a terminal that someone looks at.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progress is one line on standard error that is written over; without a terminal it says nothing.
type progress struct {
	a     *app
	on    bool
	start time.Time
	shown bool
}

func (a *app) progress() *progress {
	return &progress{a: a, on: isTerminal(a.err) && os.Getenv("TERM") != "dumb", start: time.Now()}
}

// say replaces the line.
func (p *progress) say(format string, args ...any) {
	if p.on {
		fmt.Fprintf(p.a.err, "\r\x1b[K%s (%.1f s)", fmt.Sprintf(format, args...), time.Since(p.start).Seconds())
		p.shown = true
	}
}

// done takes the line away.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.a.err, "\r\x1b[K")
		p.shown = false
	}
}
