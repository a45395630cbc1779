package main

import (
	"bufio"
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
)

// consoleLine is a line of `vm console -o json`.
type consoleLine struct {
	Offset uint64 `json:"offset"`
	Text   string `json:"text"`
}

// outputLine is a line of `vm output -o json`.
type outputLine struct {
	Index uint64 `json:"index"`
	Value uint32 `json:"value"`
}

// jsonConsole writes console bytes as JSON lines.
type jsonConsole struct {
	a      *app
	offset uint64
}

func (j *jsonConsole) Write(p []byte) (int, error) {
	err := j.a.jsonLine(consoleLine{Offset: j.offset, Text: string(p)})
	j.offset += uint64(len(p))
	return len(p), err
}

func (a *app) vmConsoleCmd() *cobra.Command {
	var tail bool
	var offset uint64
	cmd := &cobra.Command{
		Use:               "console NAME",
		Short:             "Print what the guest wrote to its console",
		Example:           "  cellvisor vm console alpha\n  cellvisor vm console alpha --follow",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			if a.format == "json" {
				return ended(ctx, c.Console(ctx, names[0], offset, tail, &jsonConsole{a, offset}))
			}
			return ended(ctx, c.Console(ctx, names[0], offset, tail, a.out))
		}),
	}
	cmd.Flags().BoolVarP(&tail, "follow", "f", false, "go on until the VM has ended")
	cmd.Flags().Uint64Var(&offset, "offset", 0, "bytes to skip")
	return cmd
}

func (a *app) vmOutputCmd() *cobra.Command {
	var tail bool
	var index uint64
	cmd := &cobra.Command{
		Use:               "output NAME",
		Short:             "Print the guest's output records, one decimal number a line",
		Example:           "  cellvisor vm output gamma\n  cellvisor vm output gamma --follow --index 1000",
		Args:              args(1, 1, "the name of one VM"),
		ValidArgsFunction: a.completeVMs(),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			out := bufio.NewWriterSize(a.out, 64<<10)
			defer out.Flush()
			var line []byte
			return ended(ctx, c.Output(ctx, names[0], index, tail, func(at uint64, record uint32) error {
				if a.format == "json" {
					return a.jsonLine(outputLine{at, record})
				}
				line = append(strconv.AppendUint(line[:0], uint64(record), 10), '\n')
				if _, err := out.Write(line); err != nil || !tail {
					return err
				}
				return out.Flush()
			}))
		}),
	}
	cmd.Flags().BoolVarP(&tail, "follow", "f", false, "go on until the VM has ended")
	cmd.Flags().Uint64Var(&index, "index", 0, "records to skip")
	return cmd
}

// ended takes Ctrl-C as the normal end of something that follows.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
