package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// healPatience is how long healing may take, its check included.
const healPatience = 90 * time.Second

// Healing is what was undone, and whether the cluster is whole again.
type Healing struct {
	OK      bool     `json:"ok"`
	Actions []string `json:"actions"`
	Problem string   `json:"problem"` // why it is not OK
	TookMs  int64    `json:"took_ms"`
}

// Dialer reaches the cluster once its servers run again, and gives a function that ends the connection.
type Dialer func(context.Context) (Cluster, func(), error)

// HealAt undoes what a drill whose runner died has left. ErrNoJournal if there is nothing.
func HealAt(ctx context.Context, host Host, dial Dialer) (Healing, error) {
	j, err := readJournal(host)
	if err != nil {
		return Healing{}, err
	}
	if host.Alive(j.Runner) && j.Runner != host.Self() {
		return Healing{}, fmt.Errorf("drill %s is still running, as process %d: Ctrl-C there makes it heal", j.Drill, j.Runner.PID)
	}
	return heal(ctx, wallClock{}, host, j, dial), nil
}

// heal undoes everything in the journal, checks that it worked, and removes the journal then. It may be repeated.
func heal(ctx context.Context, clock Clock, host Host, j *journal, dial Dialer) (h Healing) {
	began := clock.Now()
	h.Actions = []string{}
	err := healProcesses(clock, host, j, &h)
	if err == nil {
		err = healCluster(ctx, clock, host, j, dial, &h)
	}
	if err == nil {
		err = j.close()
	}
	if err != nil {
		h.Problem = api.Message(err)
	}
	h.OK = err == nil
	h.TookMs = clock.Now().Sub(began).Milliseconds()
	return h
}

// healCluster waits until the cluster is whole and removes the drill's VMs from it.
func healCluster(ctx context.Context, clock Clock, host Host, j *journal, dial Dialer, h *Healing) error {
	deadline := clock.Now().Add(healPatience)
	c, hangUp, err := dial(ctx)
	for err != nil { // servers that were just started take a moment
		if perr := clock.Pause(ctx, 200*time.Millisecond, nil); perr != nil || ctx.Err() != nil || clock.Now().After(deadline) {
			return errors.Join(err, perr)
		}
		c, hangUp, err = dial(ctx)
	}
	defer hangUp()
	if err := mendAll(ctx, c, j, h); err != nil {
		return err
	}
	if err := startEnded(clock, host, j, h); err != nil { // those that ended before they were mended
		return err
	}
	if err := awaitWhole(ctx, clock, deadline.Sub(clock.Now()), c, host); err != nil {
		return err
	}
	if err := nothingBroken(ctx, clock, c, host); err != nil {
		return err
	}
	if err := undrain(ctx, clock, c, j, cellsOf(host), h); err != nil {
		return err
	}
	return removeVMs(ctx, c, j, h)
}

// healProcesses continues what was stopped and starts what was killed.
func healProcesses(clock Clock, host Host, j *journal, h *Healing) error {
	for _, f := range j.Faults {
		if f.Kind != faultStop {
			continue
		}
		if err := host.Signal(syscall.SIGCONT, f.Processes...); err != nil {
			return fmt.Errorf("continuing server %s: %w", f.Server, err)
		}
		h.Actions = append(h.Actions, "continued server "+f.Server)
	}
	return startEnded(clock, host, j, h)
}

// startEnded starts the servers that were killed, or ended of what was done to them.
func startEnded(clock Clock, host Host, j *journal, h *Healing) error {
	for _, f := range j.Faults {
		// A server whose disk took no writes has ended, too.
		if f.Kind != faultKill && (f.Inject == nil || f.Inject.Kind != "disk") {
			continue
		}
		// The runner may have died between journal and signal, or between two signals: what was meant to die is dead before it starts anew.
		if err := finish(clock, host, f.Processes); err != nil {
			return err
		}
		started, err := startIfDead(host, f.Server)
		if err != nil {
			return fmt.Errorf("starting server %s again: %w", f.Server, err)
		}
		if started {
			h.Actions = append(h.Actions, "started server "+f.Server+" again")
		}
	}
	return nil
}

// finish kills what is left of processes that were to be killed, and waits until they are gone.
func finish(clock Clock, host Host, list []Process) error {
	if err := host.Signal(syscall.SIGKILL, list...); err != nil {
		return err
	}
	for deadline := clock.Now().Add(5 * time.Second); slices.ContainsFunc(list, host.Alive); {
		if clock.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end on SIGKILL", pids(list))
		}
		if err := clock.Pause(context.Background(), 2*time.Millisecond, nil); err != nil {
			return err
		}
	}
	return nil
}

func startIfDead(host Host, server string) (started bool, err error) {
	running, err := host.Processes()
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(running, func(p Process) bool { return p.Server == server && !p.Worker }) {
		return false, nil
	}
	return true, host.Start(server)
}

// awaitWhole waits until every server is live and the cluster has a quorum.
func awaitWhole(ctx context.Context, clock Clock, atMost time.Duration, c Cluster, host Host) error {
	for deadline := clock.Now().Add(atMost); ; {
		why := notWhole(ctx, c, host)
		if why == nil {
			return nil
		}
		if err := clock.Pause(ctx, 100*time.Millisecond, nil); err != nil {
			return err
		}
		if ctx.Err() != nil || clock.Now().After(deadline) {
			return fmt.Errorf("the cluster is not whole again: %s", api.Message(why))
		}
	}
}

// notWhole says why the cluster is not whole, nil if it is.
func notWhole(ctx context.Context, c Cluster, host Host) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if !st.GetQuorum() {
		return errors.New("it has no quorum")
	}
	servers, err := c.Servers(ctx)
	if err != nil {
		return err
	}
	for _, want := range host.Servers() {
		i := slices.IndexFunc(servers, func(s *api.Server) bool { return s.GetName() == want.Name })
		if i < 0 {
			return fmt.Errorf("server %s is not in it", want.Name)
		}
		if s := servers[i].GetState(); s != api.ServerState_SERVER_STATE_LIVE {
			return fmt.Errorf("server %s is %s", want.Name, s.Word())
		}
	}
	return nil
}

// removeVMs removes the drill's VMs, and only those: a name may have been taken by another VM since.
func removeVMs(ctx context.Context, c Cluster, j *journal, h *Healing) error {
	vms, err := c.VMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range j.VMs {
		i := slices.IndexFunc(vms, func(o *api.VM) bool { return o.GetName() == v.Name })
		switch {
		case i < 0 || v.ID != 0 && vms[i].GetId() != v.ID:
			continue
		case v.ID == 0 && vms[i].GetCreatedAt().AsTime().Before(j.StartedAt.Add(-time.Second)):
			continue // it was there before; the drill's own was refused
		}
		if err := c.Remove(ctx, v.Name); err != nil && status.Code(err) != codes.NotFound {
			return fmt.Errorf("removing VM %s: %w", v.Name, err)
		}
		h.Actions = append(h.Actions, "removed VM "+v.Name)
	}
	return nil
}

func pids(list []Process) []int {
	var out []int
	for _, p := range list {
		out = append(out, p.PID)
	}
	return out
}
