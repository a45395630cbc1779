package server

import (
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/config"
)

// newLogger makes the logger that the configuration asks for: lines for people on a terminal, JSON otherwise. The tail gets JSON in any case.
func newLogger(cfg *config.Server, out *os.File, tail io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Log.Level)
	if err != nil || cfg.Log.Level == "" {
		level = zerolog.InfoLevel
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	var w io.Writer = out
	if cfg.Log.Format == "text" || cfg.Log.Format == "" && isTerminal(out) {
		w = zerolog.ConsoleWriter{Out: out, TimeFormat: time.StampMilli, NoColor: !isTerminal(out)}
	}
	return zerolog.New(zerolog.MultiLevelWriter(w, tail)).Level(level).With().Timestamp().Logger()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
