package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/local"
)

// downResult is `down -o json`.
type downResult struct {
	Dir    string        `json:"dir"`
	Ended  []endedObject `json:"ended"`
	Purged bool          `json:"purged"`
}

type endedObject struct {
	PID    int    `json:"pid"`
	Kind   string `json:"kind"`
	Server string `json:"server"`
	Killed bool   `json:"killed"` // did not end by itself in time
}

func (a *app) downCmd() *cobra.Command {
	var dir string
	var purge bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End all processes of a local cluster",
		Long: `Ends every process of the cluster in a directory, servers and workers, stopped ones included. What the cluster knows stays on disk, and "up" with the
same directory starts it again; --purge removes it. When nothing runs, down says so and succeeds.`,
		Example: "  cellvisor down\n  cellvisor down --dir /tmp/lab --purge",
		Args:    args(0, 0, ""),
		RunE: a.does(func(_ context.Context, _ []string) error {
			d, err := a.dir(dir)
			if err != nil {
				return err
			}
			p := a.progress()
			p.say("ending the processes of the cluster in %s", d)
			ended, err := local.Down(d)
			if err == nil && purge {
				err = local.Purge(d)
			}
			p.done()
			if perr := a.reportDown(d, ended, purge && err == nil); err == nil {
				err = perr
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the cluster (default $CELLVISOR_DIR, else as for up)")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the cluster's files too")
	return cmd
}

func (a *app) reportDown(dir string, ended []local.Ended, purged bool) error {
	if a.format == "json" {
		r := downResult{Dir: dir, Ended: []endedObject{}, Purged: purged}
		for _, e := range ended {
			r.Ended = append(r.Ended, endedObject{PID: e.PID, Kind: string(e.Kind), Server: e.Server, Killed: e.Killed})
		}
		return a.json(r)
	}
	servers, workers, killed := 0, 0, 0
	for _, e := range ended {
		if e.Kind == local.KindServe {
			servers++
		} else {
			workers++
		}
		if e.Killed {
			killed++
		}
		if a.format == "wide" || a.format == "name" {
			fmt.Fprintf(a.out, "%d %s %s\n", e.PID, e.Kind, e.Server)
		}
	}
	switch {
	case a.format == "name":
	case len(ended) == 0:
		fmt.Fprintf(a.out, "nothing runs in %s\n", dir)
	default:
		fmt.Fprintf(a.out, "ended %s and %s of the cluster in %s", count(servers, "server"), count(workers, "worker"), dir)
		if killed > 0 {
			fmt.Fprintf(a.out, "; %d had to be killed", killed)
		}
		fmt.Fprintln(a.out)
	}
	return nil
}

// count is "1 server", "2 servers".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
