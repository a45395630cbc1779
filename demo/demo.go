// Package demo tells the main story on a real local cluster: three VMs, one spanning two cells, one elsewhere, one protected by a replica; a cell
// killed with SIGKILL, and what that did to whom, with the time of each stage.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// The cast.
const (
	spanning   = "alpha" // over cells a and b
	bystander  = "gamma" // in cell c
	protected  = "omega" // in the cell that dies, with a replica in another
	killed     = "b"
	vmMemory   = 64 * ident.MiB
	recordRate = 500 // records a second that the bystander emits
)

// How long the scenes may take on a slow machine, and how long the quiet ones last.
const (
	livePatience = time.Minute
	runPatience  = 30 * time.Second
	lossPatience = 15 * time.Second
	before       = 2 * time.Second // both VMs run undisturbed
	after        = 3 * time.Second // the bystander is watched after the loss
)

// Style paints words; its functions must not be nil.
type Style struct {
	Head, Good, Bad, Faint func(string) string
}

// Demo is one performance.
type Demo struct {
	Out   io.Writer
	Style Style
	Exe   string // the program; empty means the running one

	dir     string
	session *local.Session
	client  *api.Client
	watch   *watcher  // of the bystander
	saved   *watcher  // of the protected VM
	t0      time.Time // the kill
}

// Result is what the demo measured.
type Result struct {
	EpochBefore, EpochAfter uint64
	Reason                  string        // why the spanning VM is lost
	LostAfter               time.Duration // from the kill to the client's learning of it
	LongestGap              time.Duration // between two records of the bystander, from half a second before the kill on
	Records                 int           // of the bystander, all in order
	SavedGap                time.Duration // likewise of the protected VM: it includes its recovery
	SavedRecords            int           // of the protected VM, all in order
	LeftOver                int           // processes after the end
}

// Run plays all scenes. Whatever happens, the cluster is taken down and its directory removed.
func (d *Demo) Run(ctx context.Context) (res Result, err error) {
	if d.dir, err = os.MkdirTemp("", "cvdemo-"); err != nil {
		return res, err
	}
	if d.dir, err = local.Abs(d.dir); err != nil {
		return res, err
	}
	defer func() {
		left, cerr := d.curtain()
		res.LeftOver = left
		err = errors.Join(err, cerr)
	}()
	for _, scene := range []func(context.Context, *Result) error{d.raise, d.start, d.kill, d.aftermath, d.stages} {
		if err := scene(ctx, &res); err != nil {
			return res, err
		}
	}
	return res, nil
}

func (d *Demo) head(format string, args ...any) {
	fmt.Fprintf(d.Out, "\n%s\n", d.Style.Head("== "+fmt.Sprintf(format, args...)))
}

func (d *Demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "   "+format+"\n", args...) }

// raise starts three cells.
func (d *Demo) raise(ctx context.Context, _ *Result) error {
	d.head("A cluster of three cells, one server process each, on this machine")
	began := time.Now()
	share := max(config.AvailableMemory()/8, 2*vmMemory)
	s, err := local.Start(local.Options{Dir: d.dir, Exe: d.Exe, Shape: local.Shape{Cells: 3, PerCell: 1, Slots: 4, Memory: share}})
	if err != nil {
		return err
	}
	d.session = s
	lctx, cancel := context.WithTimeout(ctx, livePatience)
	defer cancel()
	if err := s.WaitLive(lctx, func(int, int) {}); err != nil {
		return err
	}
	for _, srv := range s.Cluster.Servers {
		d.say("cell %s   server %-4s process %d", srv.Cell, srv.Name, srv.Process.PID)
	}
	d.say("%s after %s", d.Style.Good("all live"), ms(time.Since(began)))
	d.client, err = api.Dial(ctx, s.Cluster.Addrs())
	return err
}

// start runs both VMs and lets them be for a while.
func (d *Demo) start(ctx context.Context, res *Result) error {
	d.head("Three virtual machines")
	specs := []*api.VMSpec{
		{Name: spanning, Payload: &api.VMSpec_Builtin{Builtin: "lock"}, Args: "100000000", Vcpus: 4, MemoryBytes: uint64(vmMemory), Span: []string{"a", killed}},
		{Name: bystander, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: fmt.Sprintf("0 %d", recordRate), Vcpus: 1, MemoryBytes: uint64(vmMemory), Span: []string{"c"}},
		{Name: protected, Payload: &api.VMSpec_Builtin{Builtin: "count"}, Args: fmt.Sprintf("0 %d", recordRate), Vcpus: 1, MemoryBytes: uint64(vmMemory), Span: []string{killed},
			Protect: "replica"},
	}
	for _, spec := range specs {
		spec.OnLoss = api.OnLoss_ON_LOSS_STOP
		if spec.Protect == "" {
			spec.Protect = "none"
		}
		v, err := d.run(ctx, spec)
		if err != nil {
			return err
		}
		d.say("%-6s %d vCPUs in %s, payload %q, running", v.GetName(), v.GetVcpus(), places(v), v.GetPayload())
	}
	if err := d.awaitSafe(ctx); err != nil {
		return err
	}
	d.saved = newWatcher(ctx, d.client, protected)
	d.watch = newWatcher(ctx, d.client, bystander)
	if err := d.watch.atLeast(ctx, recordRate/2, runPatience); err != nil {
		return err
	}
	if err := pause(ctx, before); err != nil {
		return err
	}
	st, err := d.client.API().Status(ctx, &api.StatusRequest{})
	if err != nil {
		return err
	}
	res.EpochBefore = st.GetEpoch()
	v, err := d.vm(ctx, spanning)
	if err != nil {
		return err
	}
	if v.GetState() != api.VMState_VM_STATE_RUNNING {
		return fmt.Errorf("VM %s should run, but is %s: %s", spanning, v.GetState().Word(), v.GetReason())
	}
	d.say("epoch %d; %s shares one memory over two cells, %s has emitted %d records", res.EpochBefore, spanning, bystander, d.watch.count())
	for _, w := range v.GetWorkers() {
		if k := w.GetCounters(); k != nil {
			d.say("%s", d.Style.Faint(fmt.Sprintf("  %s on %s fetched %d pages from the other cell", spanning, w.GetServer(), k.GetPagesIn())))
		}
	}
	return nil
}

func (d *Demo) run(ctx context.Context, spec *api.VMSpec) (*api.VM, error) {
	rctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	v, err := d.client.Run(rctx, spec, nil)
	if err != nil {
		return nil, fmt.Errorf("starting VM %s: %s", spec.GetName(), api.Message(err))
	}
	v, err = d.client.Wait(rctx, spec.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_STARTED, nil)
	if err != nil {
		return nil, fmt.Errorf("starting VM %s: %s", spec.GetName(), api.Message(err))
	}
	if v.GetState() != api.VMState_VM_STATE_RUNNING {
		return nil, fmt.Errorf("VM %s did not start, it is %s: %s", v.GetName(), v.GetState().Word(), v.GetReason())
	}
	return v, nil
}

func (d *Demo) vm(ctx context.Context, name string) (*api.VM, error) {
	var v *api.VM
	err := d.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		resp, err := svc.GetVM(ctx, &api.GetVMRequest{Name: name})
		v = resp.GetVm()
		return err
	})
	return v, err
}

// kill ends every process of one cell at once.
func (d *Demo) kill(context.Context, *Result) error {
	d.head("kill -9 of every process of cell %s", killed)
	members, t0, err := local.KillCell(d.dir, killed)
	if err != nil {
		return err
	}
	d.t0 = t0
	for _, m := range members {
		d.say("%-6s of %s, process %d: %s", m.Kind, m.Server, m.PID, d.Style.Bad("killed"))
	}
	return nil
}

// aftermath waits for the loss to be told, and watches the bystander.
func (d *Demo) aftermath(ctx context.Context, res *Result) error {
	d.head("What stopped, and what went on")
	lctx, cancel := context.WithTimeout(ctx, lossPatience)
	defer cancel()
	v, err := d.client.Wait(lctx, spanning, 0, api.WaitVMRequest_UNTIL_ENDED, nil)
	if err != nil {
		return fmt.Errorf("waiting for VM %s to be lost: %s", spanning, api.Message(err))
	}
	res.LostAfter, res.Reason = time.Since(d.t0), v.GetReason()
	if v.GetState() != api.VMState_VM_STATE_LOST {
		return fmt.Errorf("VM %s should be lost, but is %s: %s", spanning, v.GetState().Word(), v.GetReason())
	}
	d.say("%-6s %s after %s: %s", spanning, d.Style.Bad("lost"), ms(res.LostAfter), res.Reason)
	if err := pause(ctx, after); err != nil {
		return err
	}
	if err := d.survivor(ctx, res); err != nil {
		return err
	}
	if v, err = d.vm(ctx, bystander); err != nil {
		return err
	}
	if v.GetState() != api.VMState_VM_STATE_RUNNING {
		return fmt.Errorf("VM %s should run on, but is %s: %s", bystander, v.GetState().Word(), v.GetReason())
	}
	gap, records, err := d.watch.report(d.t0.Add(-500 * time.Millisecond))
	if err != nil {
		return err
	}
	res.LongestGap, res.Records = gap, records
	d.say("%-6s %s: %d records, each in its turn; longest gap around the kill %s (one record each %s)",
		bystander, d.Style.Good("runs on"), records, ms(gap), ms(time.Second/recordRate))
	return nil
}

// awaitSafe waits until the protected VM has its replica.
func (d *Demo) awaitSafe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	for {
		v, err := d.vm(ctx, protected)
		if err != nil {
			return err
		}
		if v.GetProtection() == "safe" {
			for _, w := range v.GetWorkers() {
				if len(w.GetVcpus()) == 0 {
					d.say("%-6s is protected: %s holds a replica, and output waits until the checkpoint after it is there", protected, w.GetServer())
				}
			}
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("VM %s does not become safe, it is %s: %w", protected, v.GetProtection(), err)
		}
	}
}

// survivor demands that the protected VM runs on elsewhere with its output unbroken.
func (d *Demo) survivor(ctx context.Context, res *Result) error {
	v, err := d.vm(ctx, protected)
	if err != nil {
		return err
	}
	if v.GetState() != api.VMState_VM_STATE_RUNNING || v.GetRecoveries() == 0 {
		return fmt.Errorf("VM %s should run on from its replica, but is %s after %d recoveries: %s", protected, v.GetState().Word(), v.GetRecoveries(), v.GetReason())
	}
	if res.SavedGap, res.SavedRecords, err = d.saved.report(d.t0.Add(-500 * time.Millisecond)); err != nil {
		return err
	}
	d.say("%-6s %s on %s: %d records, none missing, none twice; longest gap %s", protected, d.Style.Good("survived"), v.GetHome(), res.SavedRecords, ms(res.SavedGap))
	return nil
}

// stages prints the events from the kill on, with their time after it.
func (d *Demo) stages(ctx context.Context, res *Result) error {
	d.head("How long each stage took, from the kill")
	var lines []*api.Event
	err := d.client.FollowEvents(ctx, 0, false, func(e *api.Event) error {
		if at := e.GetTime().AsTime(); at.After(d.t0) && at.Before(d.t0.Add(lossPatience)) {
			lines = append(lines, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range lines {
		d.say("%9s  %-18s %s", ms(e.GetTime().AsTime().Sub(d.t0)), e.GetType(), e.GetMessage())
		res.EpochAfter = max(res.EpochAfter, e.GetEpoch())
	}
	return nil
}

// curtain takes everything down and counts what is left.
func (d *Demo) curtain() (left int, err error) {
	for _, w := range []*watcher{d.watch, d.saved} {
		if w != nil {
			w.close()
		}
	}
	if d.client != nil {
		d.client.Close()
	}
	_, err = local.Down(d.dir)
	members, ferr := local.Find(d.dir)
	err = errors.Join(err, ferr)
	if len(members) > 0 {
		err = errors.Join(err, fmt.Errorf("%d processes are left: %v", len(members), members))
	}
	if err == nil {
		err = local.Purge(d.dir)
	}
	if d.session != nil && err == nil {
		d.head("Taken down; no process is left")
	}
	return len(members), err
}

func places(v *api.VM) string {
	var out []string
	for _, w := range v.GetWorkers() {
		out = append(out, fmt.Sprintf("cell %s (%d on %s)", w.GetCell(), len(w.GetVcpus()), w.GetServer()))
	}
	return strings.Join(out, " and ")
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
