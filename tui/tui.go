package tui

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/term"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/tui/feed"
	"github.com/cellvisor/cellvisor/tui/theme"
)

// Options say what to show and how. The zero value of each field is a good default, except that Addr or Client must be given.
type Options struct {
	// Addr is a list of addresses as api.Dial takes it. Further servers are learned from the cluster.
	Addr string
	// TLS has the certificate to show to servers on TCP; nil means that only Unix sockets can be reached.
	TLS *tls.Config
	// Client, if set, is used instead of Addr, and there is no going over to other servers.
	Client api.CellvisorClient
	// ReadOnly refuses everything that changes the cluster.
	ReadOnly bool
	// ASCII draws nothing beyond US-ASCII, NoColor no colours. The environment's NO_COLOR and TERM=dumb count too.
	ASCII, NoColor bool
	// Interval is the least time between two updates; 0 means 100 ms, less than 100 ms means 100 ms.
	Interval time.Duration
	// In and Out are the terminal; nil means the process's own. When one of them is not a terminal, plain lines are written instead of
	// screens (see Plain).
	In  io.Reader
	Out io.Writer
	// Program is the command line, for what the console leaves to it (drills, above all): the path of the binary and its first arguments. Without
	// it such lines are refused.
	Program []string
	// Mouse takes clicks and the wheel from the terminal, whose own selection of text then needs shift.
	Mouse bool
	// ForceScreen draws screens even if In and Out are no terminals.
	ForceScreen bool
}

// framesPerSecond bounds the drawing: a key is answered within 33 ms.
const framesPerSecond = 30

// Run shows the console until the user leaves it or the process is asked to end by SIGTERM, SIGHUP or SIGINT (nil), or ctx ends (its error). An error in the address is told at once; a cluster that
// does not answer is not an error but waited for, and said so on the screen.
func Run(ctx context.Context, o Options) error {
	if o.In == nil {
		o.In = os.Stdin
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	config, err := feedConfig(o)
	if err != nil {
		return err
	}
	f := feed.New(config)
	outer := ctx
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	// The program is gone by then, so that nothing waits for the feed that it stops.
	defer running.Wait()
	defer cancel()
	if !o.ForceScreen && !(isTerminal(o.In) && isTerminal(o.Out)) {
		return plain(ctx, o.Out, f.Updates())
	}
	colour := !o.NoColor && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	app := newApp(ctx, theme.New(o.ASCII, colour), feedSource{f}, o.ReadOnly)
	app.program = execProgram(o.Program)
	err = show(ctx, app, o)
	cancel()
	app.awaitChildren(o.Out)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return outer.Err()
}

// show runs the program until the user leaves or ctx ends. Bubble Tea's own handling of signals and contexts is not used: when a signal
// ends both at once, its signal handler waits for ever for an event loop that has ended, with the terminal still in raw mode.
func show(ctx context.Context, app *App, o Options) error {
	options := []tea.ProgramOption{tea.WithoutSignalHandler(), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithAltScreen(), tea.WithFPS(framesPerSecond)}
	if o.Mouse {
		options = append(options, tea.WithMouseCellMotion())
	}
	program := tea.NewProgram(app, options...)
	stop := context.AfterFunc(ctx, program.Quit)
	defer stop()
	_, err := program.Run()
	return err
}

// detailEvery is the time between two questions for what a screen shows beyond the lists.
const detailEvery = 500 * time.Millisecond

func feedConfig(o Options) (feed.Config, error) {
	c := feed.Config{Every: o.Interval, Interval: max(o.Interval, detailEvery), Dial: dial(o.TLS)}
	if c.Every > 0 && c.Every < feed.MinInterval {
		c.Every = feed.MinInterval
	}
	if o.Client != nil {
		c.Addrs = []string{o.Addr}
		c.Dial = func(string) (api.CellvisorClient, io.Closer, error) { return o.Client, nil, nil }
		return c, nil
	}
	addrs, err := api.ParseAddrs(o.Addr)
	if err != nil {
		return c, fmt.Errorf("console: %w", err)
	}
	c.Addrs = addrs
	return c, nil
}

// dialPatience bounds the search for one server: it answers Status in milliseconds, or it is as good as stopped.
const dialPatience = 2 * time.Second

// dial returns what connects to the server at one address.
func dial(keys *tls.Config) func(string) (api.CellvisorClient, io.Closer, error) {
	return func(addr string) (api.CellvisorClient, io.Closer, error) {
		ctx, cancel := context.WithTimeout(context.Background(), dialPatience)
		defer cancel()
		c, err := api.DialTLS(ctx, addr, keys)
		if err != nil {
			return nil, nil, err
		}
		return c.API(), closer(c.Close), nil
	}
}

// closer makes an io.Closer of a function that cannot fail.
type closer func()

func (c closer) Close() error {
	c()
	return nil
}

func isTerminal(stream any) bool {
	f, ok := stream.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(f.Fd())
}
