package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
)

// borrowPair is two neighbouring slices: transactions a second of each side.
type borrowPair struct{ local, borrowed float64 }

// rows is one VM with the payload rows, which runs only while it has its turn.
type rows struct {
	c        *cluster
	name     string
	rates    chan uint32 // closed when there are no more, and failed is set
	failed   error
	borrowed ident.Bytes // the most at any time that was looked
	fetchUs  float64
}

// startRows starts the payload. When the table is full it waits until what has no room had time to get to lenders; both sides wait as long.
func (c *cluster) startRows(ctx context.Context, set BorrowSettings) (*rows, error) {
	wait := 3 + set.MemoryMiB/2/borrowPace
	memory := ident.Bytes(set.MemoryMiB) * ident.MiB
	r := &rows{c: c, name: "rows", rates: make(chan uint32, borrowRates*borrowSlices*set.Seconds+1)}
	spec := &api.VMSpec{Name: r.name, Payload: &api.VMSpec_Builtin{Builtin: "rows"}, Vcpus: 1, MemoryBytes: uint64(memory), Span: []string{"a"},
		Disks: []*api.Disk{{Name: "log", SizeBytes: uint64(borrowLog)}},
		Args:  fmt.Sprintf("%d %d %d %d commit %d", (memory-borrowProgram)/ident.MiB, set.HotPercent, wait, set.Seconds, borrowSlices*set.Seconds)}
	if _, err := c.start(ctx, spec); err != nil {
		return nil, err
	}
	go func() {
		r.failed = c.client.Output(ctx, r.name, 0, true, func(_ uint64, n uint32) error { r.rates <- n; return nil })
		close(r.rates)
	}()
	return r, nil
}

// rate waits for the next rate.
func (r *rows) rate(ctx context.Context) (float64, error) {
	select {
	case n, more := <-r.rates:
		if more {
			return float64(n), nil
		}
	case <-ctx.Done():
		return 0, fmt.Errorf("VM %s says nothing: %w", r.name, context.Cause(ctx))
	}
	v, err := r.look(ctx)
	return 0, errors.Join(fmt.Errorf("VM %s is %s, status %d, before it told of all rates: %s\n%s", r.name, v.GetState().Word(), v.GetExitStatus(), v.GetReason(), r.c.console(ctx, v)), r.failed, err)
}

// pause makes the guest stand still, or go on. When it returns it does. The guest sees no time pass while it stands still.
func (r *rows) pause(ctx context.Context, on bool) error {
	return r.c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		_, err := svc.PauseVM(ctx, &api.PauseVMRequest{Name: r.name, On: on})
		return err
	})
}

// turn lets the guest run for one slice. After the last it ends.
func (r *rows) turn(ctx context.Context, last bool) (rate float64, err error) {
	if err := r.pause(ctx, false); err != nil {
		return 0, err
	}
	if rate, err = r.rate(ctx); err != nil || last {
		return rate, err
	}
	return rate, r.pause(ctx, true)
}

// look takes in what the VM has borrowed.
func (r *rows) look(ctx context.Context) (v *api.VM, err error) {
	err = r.c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		got, err := svc.GetVM(ctx, &api.GetVMRequest{Name: r.name})
		v = got.GetVm()
		return err
	})
	for _, w := range v.GetWorkers() {
		held := ident.Bytes(0)
		for _, l := range w.GetCounters().GetPaging().GetLoans() {
			held += ident.Bytes(l.GetHeldBytes())
		}
		r.borrowed = max(r.borrowed, held)
		if us := w.GetCounters().GetPaging().GetInMicros(); us != 0 {
			r.fetchUs = float64(us)
		}
	}
	return v, err
}

// round starts both sides once, and has them take turns until the payload has told all.
func (rep *BorrowReport) round(ctx context.Context, near, far *cluster, pairs [][]borrowPair) (fetchUs float64, err error) {
	set := rep.Settings
	ctx, cancel := context.WithTimeoutCause(ctx, runPatience+time.Duration(4*borrowRates*set.Seconds)*time.Second, errors.New("a round takes too long"))
	defer cancel()
	var sides [2]*rows
	for i, c := range []*cluster{near, far} {
		if sides[i], err = c.startRows(ctx, set); err != nil {
			return 0, err
		}
	}
	for _, r := range sides { // each says when it begins
		if _, err := r.rate(ctx); err != nil {
			return 0, err
		}
		if err := r.pause(ctx, true); err != nil {
			return 0, err
		}
	}
	for i := range pairs {
		for n := range borrowSlices * set.Seconds {
			last := i == len(pairs)-1 && n == borrowSlices*set.Seconds-1
			var rates [2]float64
			for turn := range sides {
				side := (turn + n) % len(sides)
				if rates[side], err = sides[side].turn(ctx, last); err != nil {
					return 0, err
				}
			}
			pairs[i] = append(pairs[i], borrowPair{local: rates[0], borrowed: rates[1]})
		}
		if _, err := sides[1].look(ctx); err != nil {
			return 0, err
		}
	}
	table := ident.Bytes(set.MemoryMiB)*ident.MiB - borrowProgram
	if percent := round3(100 * float64(sides[1].borrowed) / float64(table)); rep.BorrowedPercent == 0 || percent < rep.BorrowedPercent {
		rep.BorrowedPercent = percent
	}
	for _, r := range sides {
		err = errors.Join(err, r.c.remove(ctx, r.name))
	}
	return sides[1].fetchUs, err
}
