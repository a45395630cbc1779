package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/server"
	"github.com/cellvisor/cellvisor/worker"
)

func (a *app) serveCmd() *cobra.Command {
	var file string
	var check bool
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run a server of a cluster",
		Long: `Runs one server: the process that decides, agrees with the other servers and supervises this host's VM parts. It runs until SIGTERM or SIGINT.
VM parts outlive it: the next serve on the same data adopts them.`,
		Example: "  cellvisor serve --config /etc/cellvisor/server.hcl\n  cellvisor serve --config server.hcl --check",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			if file == "" {
				return usagef("--config is missing")
			}
			return nil
		},
		RunE: a.does(func(ctx context.Context, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			if check {
				return nil
			}
			return ended(ctx, server.Run(ctx, cfg))
		}),
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file (HCL)")
	cmd.Flags().BoolVar(&check, "check", false, "only read the file and say what is wrong")
	return cmd
}

// workerCmd is what serve starts; it is no operator's command.
func (a *app) workerCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "worker --dir DIR",
		Short:  "Hold one VM's part on this server",
		Hidden: true,
		Args:   args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usagef("--dir is missing")
			}
			return nil
		},
		RunE: a.does(func(context.Context, []string) error {
			return worker.Run(dir, a.logger(config.Log{Level: "info"}))
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory with the part's spec")
	return cmd
}

// logger logs to standard error: for people on a terminal, as JSON otherwise, unless the configuration chooses.
func (a *app) logger(c config.Log) zerolog.Logger {
	var w io.Writer = a.err
	if c.Format == "text" || c.Format == "" && isTerminal(a.err) {
		w = zerolog.ConsoleWriter{Out: a.err, TimeFormat: "15:04:05.000000", NoColor: !isTerminal(a.err) || !colourWanted()}
	}
	level, err := zerolog.ParseLevel(strings.ToLower(c.Level))
	if err != nil || c.Level == "" {
		level = zerolog.InfoLevel
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
