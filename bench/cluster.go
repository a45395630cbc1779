package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// How long the steps of a benchmark may take.
const (
	livePatience = time.Minute
	runPatience  = 3 * time.Minute
)

// cluster is a local cluster that lives as long as a benchmark.
type cluster struct {
	dir    string
	addrs  string // of the servers' APIs
	client *api.Client
}

// startCluster starts one server in each cell, in a directory that is removed at the end.
func startCluster(ctx context.Context, exe string, cells, slots int, memory ident.Bytes) (c *cluster, err error) {
	return startShape(ctx, exe, local.Shape{Cells: cells, PerCell: 1, Slots: slots, Memory: memory})
}

// startShape starts a cluster of any shape, likewise.
func startShape(ctx context.Context, exe string, shape local.Shape) (c *cluster, err error) {
	return startShapeIn(ctx, exe, "", shape)
}

// startShapeIn has the directory below parent, "" for the system's place for such.
func startShapeIn(ctx context.Context, exe, parent string, shape local.Shape) (c *cluster, err error) {
	c = &cluster{}
	if c.dir, err = os.MkdirTemp(parent, "cvbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if c.dir, err = local.Abs(c.dir); err != nil {
		return nil, err
	}
	s, err := local.Start(local.Options{Dir: c.dir, Exe: exe, Shape: shape})
	if err != nil {
		return nil, err
	}
	lctx, cancel := context.WithTimeout(ctx, livePatience)
	defer cancel()
	if err := s.WaitLive(lctx, func(int, int) {}); err != nil {
		return nil, err
	}
	c.addrs = s.Cluster.Addrs()
	c.client, err = api.Dial(ctx, c.addrs)
	return c, err
}

func (c *cluster) stop() error {
	if c.client != nil {
		c.client.Close()
	}
	_, err := local.Down(c.dir)
	if err == nil {
		err = local.Purge(c.dir)
	}
	return err
}

// start creates a VM and waits until it runs.
func (c *cluster) start(ctx context.Context, spec *api.VMSpec) (*api.VM, error) {
	spec.OnLoss, spec.Protect = api.OnLoss_ON_LOSS_STOP, "none"
	v, err := c.client.Run(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("starting VM %s: %s", spec.GetName(), api.Message(err))
	}
	if v, err = c.client.Wait(ctx, v.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_STARTED, nil); err != nil {
		return nil, fmt.Errorf("starting VM %s: %s", spec.GetName(), api.Message(err))
	}
	return v, nil
}

// run runs a VM to its end, returns its output and forgets it.
func (c *cluster) run(ctx context.Context, spec *api.VMSpec) (records []uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	v, err := c.start(ctx, spec)
	if err == nil {
		v, err = c.client.Wait(ctx, v.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_ENDED, nil)
	}
	if err != nil {
		return nil, err
	}
	if v.GetState() != api.VMState_VM_STATE_EXITED || v.GetExitStatus() != 0 {
		return nil, fmt.Errorf("VM %s is %s, status %d: %s\n%s", v.GetName(), v.GetState().Word(), v.GetExitStatus(), v.GetReason(), c.console(ctx, v))
	}
	err = c.client.Output(ctx, v.GetName(), 0, false, func(_ uint64, r uint32) error { records = append(records, r); return nil })
	return records, errors.Join(err, c.remove(ctx, v.GetName()))
}

func (c *cluster) remove(ctx context.Context, name string) error {
	return c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.RemoveVM(ctx, &api.RemoveVMRequest{Name: name, Force: true})
		return err
	})
}

// counters sums up the counters of all servers.
func (c *cluster) counters(ctx context.Context) (map[string]uint64, error) {
	sum := make(map[string]uint64)
	for addr := range strings.SplitSeq(c.addrs, ",") {
		one, err := api.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		err = one.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			r, err := svc.DebugCounters(ctx, &api.DebugCountersRequest{})
			for name, n := range r.GetCounters() {
				sum[name] += n
			}
			return err
		})
		one.Close()
		if err != nil {
			return nil, err
		}
	}
	return sum, nil
}

// console returns what a failed guest printed.
func (c *cluster) console(ctx context.Context, v *api.VM) string {
	var out tail
	_ = c.client.Console(ctx, v.GetName(), 0, false, &out)
	return string(out)
}

// tail keeps the last bytes that were written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	const keep = 2048
	*t = append(*t, p...)
	if len(*t) > keep {
		*t = (*t)[len(*t)-keep:]
	}
	return len(p), nil
}
