package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// RebootSettings say how the reboot benchmark runs.
type RebootSettings struct {
	Rounds   int `json:"rounds"`
	DiskMiB  int `json:"disk_mib"`           // that the guest reads before its first output
	DiskMBps int `json:"disk_mb_per_second"` // that the disk gives; 0: as it can
}

// Check tells what is wrong with the settings.
func (s RebootSettings) Check() error {
	switch {
	case s.Rounds < 1 || s.Rounds > 1000:
		return fmt.Errorf("rounds must be from 1 to 1000, not %d", s.Rounds)
	case s.DiskMiB < 1 || s.DiskMiB > 512:
		return fmt.Errorf("disk-mib must be from 1 to 512, not %d", s.DiskMiB)
	case s.DiskMBps < 0 || s.DiskMBps > 100000:
		return fmt.Errorf("disk-speed must be from 0 (as it can) to 100000 MB/s, not %d", s.DiskMBps)
	}
	return nil
}

// RebootReport is the result of the reboot benchmark.
type RebootReport struct {
	Benchmark string         `json:"benchmark"`
	Host      Host           `json:"host"`
	Settings  RebootSettings `json:"settings"`
	Without   RebootFigure   `json:"without_srt"` // every block is read from the disk, as at a cold boot
	With      RebootFigure   `json:"with_srt"`

	ReadPercent float64 `json:"read_percent"` // bytes read from the disk with it, of those without
	Speedup     float64 `json:"speedup"`      // median time to the first output without it, over that with it
}

// RebootFigure is what was measured of restarts in place.
type RebootFigure struct {
	FirstOutputMs    float64 `json:"first_output_ms"` // from the reset to the guest's first output, median
	FirstOutputMaxMs float64 `json:"first_output_max_ms"`
	DiskReadBytes    float64 `json:"disk_read_bytes"`   // mean of a boot
	DiskCachedBytes  float64 `json:"disk_cached_bytes"` // taken from memory instead
}

const (
	rebootVM      = "reboot"
	rebootSettle  = 5 * time.Second // within which a worker tells its counters
	rebootExtra   = 16 * ident.MiB  // of memory, besides the blocks
	rebootBlock   = 4096
	phoenixBlocks = 2 // that phoenix reads besides the data
)

// Reboot measures how long a guest that was reset takes to its first output, with the storage replica table and without. say is told how far it is.
func Reboot(ctx context.Context, exe string, set RebootSettings, say func(string)) (rep RebootReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = RebootReport{Benchmark: "reboot", Host: ThisHost(), Settings: set}
	say("starting a server")
	memory := ident.Bytes(set.DiskMiB)*ident.MiB + rebootExtra
	c, err := startShape(ctx, exe, local.Shape{Cells: 1, PerCell: 1, Slots: slots, Memory: memory + 64*ident.MiB})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, srt := range []string{"off", "on"} {
		f, err := c.reboots(ctx, set, srt, memory, say)
		if err != nil {
			return rep, err
		}
		if srt == "on" {
			rep.With = f
		} else {
			rep.Without = f
		}
	}
	rep.ReadPercent = round3(100 * rep.With.DiskReadBytes / rep.Without.DiskReadBytes)
	rep.Speedup = round3(rep.Without.FirstOutputMs / rep.With.FirstOutputMs)
	return rep, nil
}

// reboots resets a VM round after round.
func (c *cluster) reboots(ctx context.Context, set RebootSettings, srt string, memory ident.Bytes, say func(string)) (f RebootFigure, err error) {
	blocks := set.DiskMiB << 20 / rebootBlock
	size := uint64(blocks+phoenixBlocks) * rebootBlock
	spec := &api.VMSpec{
		Name: rebootVM, Payload: &api.VMSpec_Builtin{Builtin: "phoenix"}, Args: fmt.Sprintf("0 %d read", blocks), Vcpus: 1, MemoryBytes: uint64(memory),
		Disks:   []*api.Disk{{Name: "data", SizeBytes: size}},
		Options: map[string]string{"srt": srt, "disk.bytes_per_sec": strconv.Itoa(set.DiskMBps * 1000000)},
	}
	say(fmt.Sprintf("SRT %s: the first boot", srt))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(set.Rounds+1)*runPatience)
	defer cancel()
	if _, err := c.start(ctx, spec); err != nil {
		return f, err
	}
	if err := c.awaitRecord(ctx, rebootVM, 0); err != nil {
		return f, err
	}
	before, err := c.diskCounters(ctx, func(read, cached uint64) bool { return read+cached >= size })
	if err != nil {
		return f, err
	}
	var took []time.Duration
	var read, cached uint64
	for round := range set.Rounds {
		say(fmt.Sprintf("SRT %s: restart %d of %d", srt, round+1, set.Rounds))
		began := time.Now()
		err := c.client.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
			_, err := svc.ResetVM(ctx, &api.ResetVMRequest{Name: rebootVM, Reason: "benchmark"})
			return err
		})
		if err == nil {
			err = c.awaitRecord(ctx, rebootVM, uint64(round)+1)
		}
		if err != nil {
			return f, err
		}
		took = append(took, time.Since(began))
		after, err := c.diskCounters(ctx, func(r, k uint64) bool { return r+k >= before[0]+before[1]+size })
		if err != nil {
			return f, err
		}
		read, cached = read+after[0]-before[0], cached+after[1]-before[1]
		before = after
	}
	slices.Sort(took)
	f = RebootFigure{
		FirstOutputMs: millis(took[len(took)/2]), FirstOutputMaxMs: millis(took[len(took)-1]),
		DiskReadBytes: round3(float64(read) / float64(set.Rounds)), DiskCachedBytes: round3(float64(cached) / float64(set.Rounds)),
	}
	return f, c.remove(ctx, rebootVM)
}

func millis(d time.Duration) float64 { return round3(d.Seconds() * 1000) }

var errSeen = errors.New("seen")

// awaitRecord waits until the VM has put out its record number index.
func (c *cluster) awaitRecord(ctx context.Context, name string, index uint64) error {
	err := c.client.Output(ctx, name, index, true, func(uint64, uint32) error { return errSeen })
	switch {
	case errors.Is(err, errSeen):
		return nil
	case err == nil:
		return fmt.Errorf("VM %s ended before its output number %d:\n%s", name, index, c.console(ctx, &api.VM{Name: name}))
	}
	return err
}

// diskCounters waits until the counters of bytes from disks and from memory are what they must come to, and returns them.
func (c *cluster) diskCounters(ctx context.Context, enough func(read, cached uint64) bool) (both [2]uint64, err error) {
	for deadline := time.Now().Add(rebootSettle); ; {
		all, err := c.counters(ctx)
		if err != nil {
			return both, err
		}
		both = [2]uint64{all["disks.read_bytes"], all["disks.cached_bytes"]}
		if enough(both[0], both[1]) {
			return both, nil
		}
		if time.Now().After(deadline) {
			return both, fmt.Errorf("the worker has told of %d bytes from the disk and %d from memory only", both[0], both[1])
		}
		select {
		case <-ctx.Done():
			return both, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
