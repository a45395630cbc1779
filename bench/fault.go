package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/local"
)

// FaultSettings say how the fault benchmark runs.
type FaultSettings struct {
	Pages  int  `json:"pages"`       // touched in each series by each measuring vCPU
	Rounds int  `json:"rounds"`      // of everything; samples are pooled
	VCPUs  int  `json:"vcpus"`       // that measure at once in the second half
	Plain  bool `json:"plain_pages"` // page traffic is not encrypted
}

// Bounds of FaultSettings.
const (
	maxPages = 8192
	maxVCPUs = 8 // that the payload has room for
	slots    = 8 // of each server of the benchmark's cluster
)

// Check tells what is wrong with the settings.
func (s FaultSettings) Check() error {
	switch {
	case s.Pages < 100 || s.Pages > maxPages:
		return fmt.Errorf("pages must be from 100 to %d, not %d", maxPages, s.Pages)
	case s.Rounds < 1 || s.Rounds > 1000:
		return fmt.Errorf("rounds must be from 1 to 1000, not %d", s.Rounds)
	case s.VCPUs < 2 || s.VCPUs > maxVCPUs:
		return fmt.Errorf("vcpus must be from 2 to %d, not %d", maxVCPUs, s.VCPUs)
	}
	return nil
}

// FaultReport is the result of the fault benchmark. Names of fields are an interface: see docs/json.md.
type FaultReport struct {
	Benchmark string        `json:"benchmark"`
	Host      Host          `json:"host"`
	Settings  FaultSettings `json:"settings"`

	// The floor of a remote fault: one that goes the same way through userfaultfd, but in a VM on one server, plus a raw 64-byte request
	// with a page for an answer between two processes over the same kind of socket.
	LocalFault   Figure `json:"local_fault"`
	RawRoundTrip Figure `json:"raw_round_trip"`

	RemoteRead         Figure  `json:"remote_read"`
	RemoteWrite        Figure  `json:"remote_write"`
	RemoteWriteSharers Figure  `json:"remote_write_3_sharers"`
	RemoteReadSeq      Figure  `json:"remote_read_sequential"`
	RemoteWriteSeq     Figure  `json:"remote_write_sequential"`
	RemoteReadMany     Figure  `json:"remote_read_4_vcpus"`
	RemoteWriteMany    Figure  `json:"remote_write_4_vcpus"`
	RemoteReadSeqMany  Figure  `json:"remote_read_sequential_4_vcpus"`
	RemoteWriteSeqMany Figure  `json:"remote_write_sequential_4_vcpus"`
	SequentialSpeedup  float64 `json:"sequential_speedup"`    // mean of a random remote read over the mean of a sequential one
	ReadP99OverMedian  float64 `json:"read_p99_over_median"`  // of random remote reads
	WriteP99OverMedian float64 `json:"write_p99_over_median"` // of random remote writes
}

// samples pools what the rounds found.
type samples struct {
	local, raw         []uint32
	one, many, sharers []series
}

// Fault measures remote page faults on a cluster of four cells on this machine. say is told how far it is.
func Fault(ctx context.Context, exe string, set FaultSettings, say func(string)) (rep FaultReport, err error) {
	if err := set.Check(); err != nil {
		return rep, err
	}
	if exe == "" {
		if exe, err = os.Executable(); err != nil {
			return rep, err
		}
	}
	rep = FaultReport{Benchmark: "fault", Host: ThisHost(), Settings: set}
	e, err := startEcho(exe)
	if err != nil {
		return rep, err
	}
	defer e.stop()
	say("starting a cluster of four cells")
	c, err := startShape(ctx, exe, local.Shape{Cells: 4, PerCell: 1, Slots: slots, Memory: 512 * ident.MiB, PlainPages: set.Plain})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var all samples
	for round := range set.Rounds {
		say(fmt.Sprintf("round %d of %d", round+1, set.Rounds))
		if err := all.round(ctx, c, e, set); err != nil {
			return rep, err
		}
	}
	rep.fill(&all)
	return rep, nil
}

// round measures each quantity once, the floor before and after the rest.
func (s *samples) round(ctx context.Context, c *cluster, e *echo, set FaultSettings) error {
	raw := func() error {
		ns, err := e.measure(ctx, set.Pages)
		s.raw = append(s.raw, ns...)
		return err
	}
	if err := raw(); err != nil {
		return err
	}
	// One server, but its memory is watched as that of a spanning VM: the fault goes the same way, and nobody else need be asked.
	here, err := s.vm(ctx, c, "local", fmt.Sprintf("%d local 1", set.Pages), map[string]string{"watch": "always", "read-ahead": "0"}, 2, "b")
	if err != nil {
		return err
	}
	s.local = append(s.local, pool(here, seriesLocal)...)
	one, err := s.vm(ctx, c, "one", fmt.Sprintf("%d all 1 0", set.Pages), nil, 2, "a", "b")
	if err != nil {
		return err
	}
	s.one = append(s.one, one...)
	// Two others read what the first wrote: with it, three hold each page.
	shared, err := s.vm(ctx, c, "sharers", fmt.Sprintf("%d shared 1 2", set.Pages), nil, 4, "a", "b", "c", "d")
	if err != nil {
		return err
	}
	s.sharers = append(s.sharers, shared...)
	// vCPUs are dealt out evenly: the first half lies in a and, but for the writer, idles; the other half measures.
	many, err := s.vm(ctx, c, "many", fmt.Sprintf("%d all %d 0", set.Pages, set.VCPUs), nil, 2*uint32(set.VCPUs), "a", "b")
	if err != nil {
		return err
	}
	s.many = append(s.many, many...)
	return raw()
}

func (s *samples) vm(ctx context.Context, c *cluster, name, args string, options map[string]string, vcpus uint32, span ...string) ([]series, error) {
	records, err := c.run(ctx, &api.VMSpec{
		Name: name, Payload: &api.VMSpec_Builtin{Builtin: "fault"}, Args: args, Vcpus: vcpus, MemoryBytes: uint64(256 * ident.MiB), Span: span, Options: options,
	})
	if err != nil {
		return nil, err
	}
	found, err := decodeSeries(records)
	if err != nil {
		return nil, fmt.Errorf("output of VM %s: %w", name, err)
	}
	return found, nil
}

// fill computes the figures.
func (r *FaultReport) fill(s *samples) {
	r.LocalFault, r.RawRoundTrip = summarize(s.local), summarize(s.raw)
	floor := round3(r.LocalFault.MedianUs + r.RawRoundTrip.MedianUs)
	figure := func(all []series, kind uint32) Figure { return summarize(pool(all, kind)).over(floor) }
	r.RemoteRead, r.RemoteWrite = figure(s.one, seriesRead), figure(s.one, seriesWrite)
	r.RemoteReadSeq, r.RemoteWriteSeq = figure(s.one, seriesReadSeq), figure(s.one, seriesWriteSeq)
	r.RemoteWriteSharers = figure(s.sharers, seriesShared)
	r.RemoteReadMany, r.RemoteWriteMany = figure(s.many, seriesRead), figure(s.many, seriesWrite)
	r.RemoteReadSeqMany, r.RemoteWriteSeqMany = figure(s.many, seriesReadSeq), figure(s.many, seriesWriteSeq)
	r.SequentialSpeedup = quotient(r.RemoteRead.MeanUs, r.RemoteReadSeq.MeanUs)
	r.ReadP99OverMedian = quotient(r.RemoteRead.P99Us, r.RemoteRead.MedianUs)
	r.WriteP99OverMedian = quotient(r.RemoteWrite.P99Us, r.RemoteWrite.MedianUs)
}
