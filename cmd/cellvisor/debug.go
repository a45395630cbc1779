package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
)

func (a *app) debugCmd() *cobra.Command {
	return a.noun("debug", "Material for finding faults", a.debugBundleCmd())
}

func (a *app) debugBundleCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Collect status, events, VMs, logs and stacks of all servers in one file",
		Long: `Writes a tar.gz with what is needed to find a fault: how the cluster is, its events, VMs and operations, and of each live server its version, counters,
the stacks of its goroutines and the ends of its log and of its workers' logs. What guests print, secrets and keys are not in it; names of servers and VMs,
and arguments of VMs, are. A server that does not answer is left out, and the file "errors.txt" says so.`,
		Example: "  cellvisor debug bundle\n  cellvisor debug bundle -O /tmp/fault.tar.gz",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			now := time.Now()
			if file == "" {
				file = now.Format("cellvisor-20060102-150405.tar.gz")
			}
			out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			err = errors.Join(writeBundle(ctx, c, out, now), out.Close())
			if err != nil {
				return errors.Join(err, os.Remove(file))
			}
			if a.format == "json" {
				return a.json(map[string]string{"file": file})
			}
			fmt.Fprintln(a.out, file)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&file, "out", "O", "", "file to write (default cellvisor-DATE-TIME.tar.gz here)")
	return cmd
}

// bundle is the archive while it is written.
type bundle struct {
	ctx    context.Context
	c      *api.Client
	tar    *tar.Writer
	at     time.Time
	failed []string
}

func writeBundle(ctx context.Context, c *api.Client, out io.Writer, at time.Time) error {
	zip := gzip.NewWriter(out)
	b := &bundle{ctx: ctx, c: c, tar: tar.NewWriter(zip), at: at}
	err := b.collect()
	return errors.Join(err, b.tar.Close(), zip.Close())
}

// add writes a file; text that is not there is left out.
func (b *bundle) add(name, text string) error {
	h := &tar.Header{Name: "cellvisor/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: b.at}
	if err := b.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(b.tar, text)
	return err
}

func (b *bundle) json(name string, v any, err error) error {
	if err != nil {
		b.fail(name, err)
		return nil
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return b.add(name, string(text)+"\n")
}

func (b *bundle) fail(what string, err error) {
	b.failed = append(b.failed, what+": "+api.Message(err))
}

func (b *bundle) collect() error {
	st, err := getStatus(b.ctx, b.c)
	if err != nil {
		return err // nobody answers: there is nothing to collect
	}
	servers, serr := listServers(b.ctx, b.c)
	cells, cerr := listCells(b.ctx, b.c)
	vms, verr := listVMs(b.ctx, b.c)
	for i, vm := range vms {
		if full, err := getVM(b.ctx, b.c, vm.GetName()); err == nil {
			vms[i] = full
		}
	}
	var ops []*api.Operation
	oerr := b.c.Call(b.ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.ListOperations(ctx, &api.ListOperationsRequest{})
		ops = r.GetOperations()
		return err
	})
	err = errors.Join(
		b.add("version.txt", fmt.Sprintf("cellvisor %s\n", version)),
		b.json("status.json", view.OfStatus(st), nil),
		b.json("servers.json", view.Map(servers, view.OfServer), serr),
		b.json("cells.json", view.Map(cells, view.OfCell), cerr),
		b.json("vms.json", view.Map(vms, view.OfVM), verr),
		b.json("operations.json", view.Map(ops, view.OfOperation), oerr),
		b.events(),
	)
	for _, s := range servers {
		if s.GetState() == api.ServerState_SERVER_STATE_LIVE {
			err = errors.Join(err, b.server(s.GetName()))
		}
	}
	if len(b.failed) > 0 {
		err = errors.Join(err, b.add("errors.txt", strings.Join(b.failed, "\n")+"\n"))
	}
	return err
}

func (b *bundle) events() error {
	var text strings.Builder
	err := b.c.FollowEvents(b.ctx, 0, false, func(e *api.Event) error {
		line, err := json.Marshal(view.OfEvent(e))
		text.Write(line)
		text.WriteByte('\n')
		return err
	})
	if err != nil {
		b.fail("events", err)
	}
	return b.add("events.jsonl", text.String())
}

// dumpPatience bounds the questions to one server.
const dumpPatience = 5 * time.Second

// server adds what one server says about itself.
func (b *bundle) server(name string) error {
	ctx, cancel := context.WithTimeout(b.ctx, dumpPatience)
	defer cancel()
	svc := b.c.API()
	counters, err := svc.DebugCounters(ctx, &api.DebugCountersRequest{Server: name})
	err = b.json(name+"/counters.json", counters.GetCounters(), err)
	dump, derr := svc.DebugDump(ctx, &api.DebugDumpRequest{Server: name})
	if derr != nil {
		if status.Code(derr) == codes.Canceled {
			return derr
		}
		b.fail(name, derr)
		return err
	}
	err = errors.Join(err, b.add(name+"/version.txt", dump.GetVersion()+"\n"), b.add(name+"/stacks.txt", dump.GetStacks()), b.add(name+"/serve.log", dump.GetLog()))
	for vm, text := range dump.GetWorkerLogs() {
		err = errors.Join(err, b.add(name+"/worker-"+vm+".log", text))
	}
	return err
}
