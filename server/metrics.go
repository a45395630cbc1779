package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/wire"
)

// Metrics are an interface, unlike the counters behind DebugCounters: docs/metrics.md lists them, a test compares.

// metric is one of a server's metrics.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
}

func (m metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.name, m.help, m.labels, nil) }

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// Metrics about the cluster as this server knows it, and about the server.
var (
	metricBuild       = metric{"cellvisor_build_info", "Version of the program; the value is 1.", gauge, []string{"version"}}
	metricEpoch       = metric{"cellvisor_epoch", "Number of the view that this server has applied.", gauge, nil}
	metricQuorum      = metric{"cellvisor_quorum", "1 while this server is in contact with a quorum.", gauge, nil}
	metricLeader      = metric{"cellvisor_leader", "1 while this server leads the agreement.", gauge, nil}
	metricServers     = metric{"cellvisor_servers", "Servers by state.", gauge, []string{"state"}}
	metricCells       = metric{"cellvisor_cells", "Cells by state.", gauge, []string{"state"}}
	metricVMs         = metric{"cellvisor_vms", "VMs by state.", gauge, []string{"state"}}
	metricProtection  = metric{"cellvisor_protected_vms", "Running VMs that asked for protection, by what they have of it.", gauge, []string{"protection"}}
	metricOperations  = metric{"cellvisor_operations", "Operations by state.", gauge, []string{"state"}}
	metricEvents      = metric{"cellvisor_events_total", "Events that the cluster has recorded.", counter, nil}
	metricSlots       = metric{"cellvisor_slots", "vCPUs that this server may run at a time.", gauge, nil}
	metricSlotsUsed   = metric{"cellvisor_slots_used", "vCPUs placed on this server.", gauge, nil}
	metricMemory      = metric{"cellvisor_memory_bytes", "Guest memory that this server offers.", gauge, nil}
	metricMemoryUsed  = metric{"cellvisor_memory_used_bytes", "Guest memory promised to VMs placed on this server.", gauge, nil}
	metricCordoned    = metric{"cellvisor_cordoned", "1 while no new VM parts are placed on this server.", gauge, nil}
	clusterMetricList = []metric{metricBuild, metricEpoch, metricQuorum, metricLeader, metricServers, metricCells, metricVMs, metricProtection,
		metricOperations, metricEvents, metricSlots, metricSlotsUsed, metricMemory, metricMemoryUsed, metricCordoned}
)

// counterMetrics are counters of this process, by their names in DebugCounters; micros are told in seconds.
var counterMetrics = []struct {
	metric
	key    string
	micros bool
}{
	{metric{"cellvisor_api_calls_total", "Calls of the API.", counter, nil}, "api.calls", false},
	{metric{"cellvisor_api_panics_total", "Calls of the API that failed inside the server: a bug, see the log.", counter, nil}, "api.panics", false},
	{metric{"cellvisor_loop_long_turns_total", "Turns of the deciding loop that took longer than 300 ms: a slow disk.", counter, nil}, "loop.long_turns", false},
	{metric{"cellvisor_loop_late_turns_total", "Turns that began more than 300 ms late: an overloaded host.", counter, nil}, "loop.late_turns", false},
	{metric{"cellvisor_loop_inbox", "Events that wait for the deciding loop.", gauge, nil}, "loop.inbox", false},
	{metric{"cellvisor_disk_saves_total", "Writes of the replicated log to disk.", counter, nil}, "disk.saves", false},
	{metric{"cellvisor_disk_save_seconds_total", "Time spent in them.", counter, nil}, "disk.save_micros", true},
	{metric{"cellvisor_hints_total", "Hints that a server may have failed.", counter, nil}, "hints", false},
	{metric{"cellvisor_workers", "Worker processes, one for each VM part.", gauge, nil}, "workers.running", false},
	{metric{"cellvisor_workers_started_total", "Worker processes started.", counter, nil}, "workers.started", false},
	{metric{"cellvisor_workers_adopted_total", "Worker processes taken over from an earlier serve.", counter, nil}, "workers.adopted", false},
	{metric{"cellvisor_workers_killed_total", "Worker processes killed.", counter, nil}, "workers.killed", false},
	{metric{"cellvisor_workers_fenced_total", "Times that a worker stopped its vCPUs because the lease had lapsed.", counter, nil}, "workers.fenced", false},
	{metric{"cellvisor_workers_failed_starts_total", "Worker processes that could not be started.", counter, nil}, "workers.failed_starts", false},
	{metric{"cellvisor_peers_sent_bytes_total", "Bytes sent to other servers, page traffic excluded.", counter, nil}, "peers.sent_bytes", false},
	{metric{"cellvisor_peers_received_bytes_total", "Bytes received from other servers, page traffic excluded.", counter, nil}, "peers.received_bytes", false},
	{metric{"cellvisor_gang_orders_total", "Orders to VM parts to run or to wait.", counter, nil}, "gang.orders", false},
	{metric{"cellvisor_gang_undelivered_total", "Orders that did not reach their worker.", counter, nil}, "gang.undelivered", false},
	{metric{"cellvisor_gang_busy_seconds_total", "CPU time that the gang scheduler took: to decide, and to tell workers.", counter, nil}, "gang.busy_micros", true},
	{metric{"cellvisor_gang_start_skew_p99_seconds", "By how much the starts of a gang on several servers differ, 99th percentile.", gauge, nil}, "gang.start_skew.p99_us", true},
}

// vmMetrics are about the parts of VMs on this server, labelled by VM.
var vmMetrics = []struct {
	metric
	value func(*wire.WorkerStats) float64
}{
	{vmMetric("run_seconds_total", "Time that the vCPUs here spent in the guest.", counter), func(s *wire.WorkerStats) float64 { return seconds(int64(s.RunMicros)) }},
	{vmMetric("exits_total", "Exits of the vCPUs here.", counter), func(s *wire.WorkerStats) float64 { return float64(s.VCPUExits) }},
	{vmMetric("remote_reads_total", "Pages fetched from other servers to read.", counter), func(s *wire.WorkerStats) float64 { return float64(s.RemoteReads) }},
	{vmMetric("remote_writes_total", "Pages, or the right to write them, fetched from other servers.", counter), func(s *wire.WorkerStats) float64 { return float64(s.RemoteWrites) }},
	{vmMetric("pages_sent_total", "Pages sent to other servers.", counter), func(s *wire.WorkerStats) float64 { return float64(s.PagesOut) }},
	{vmMetric("resident_bytes", "Guest memory held here.", gauge), func(s *wire.WorkerStats) float64 { return float64(s.ResidentBytes) }},
	{vmMetric("checkpoints_total", "Checkpoints that all replicas hold; told by the VM's home.", counter), func(s *wire.WorkerStats) float64 { return float64(s.Checkpoints) }},
	{vmMetric("checkpoint_lag_seconds", "Age of the newest checkpoint that all replicas hold.", gauge), func(s *wire.WorkerStats) float64 { return seconds(int64(s.LagMicros)) }},
	{vmMetric("checkpoint_pause_seconds", "For how long the last checkpoint stopped the guest.", gauge), func(s *wire.WorkerStats) float64 { return seconds(int64(s.CutMicros)) }},
	{vmMetric("held_output_bytes", "Output that waits until a checkpoint is safe.", gauge), func(s *wire.WorkerStats) float64 { return float64(s.HeldBytes) }},
}

func vmMetric(name, help string, kind prometheus.ValueType) metric {
	return metric{"cellvisor_vm_" + name, help, kind, []string{"vm"}}
}

func seconds(micros int64) float64 { return float64(micros) / 1e6 }

// collector implements prometheus.Collector for a server.
type collector struct{ s *Server }

// allMetrics lists every metric of a server's own.
func allMetrics() []metric {
	out := append([]metric(nil), clusterMetricList...)
	for _, m := range counterMetrics {
		out = append(out, m.metric)
	}
	for _, m := range vmMetrics {
		out = append(out, m.metric)
	}
	return out
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range allMetrics() {
		out <- m.desc()
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	give := func(m metric, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.desc(), m.kind, v, labels...)
	}
	c.cluster(give)
	all := c.s.counters()
	for _, m := range counterMetrics {
		v := float64(all[m.key])
		if m.micros {
			v = seconds(int64(all[m.key]))
		}
		give(m.metric, v)
	}
	st := c.s.board.now().state
	for _, w := range c.s.workers.all() {
		vm, stats := st.VM(w.vm), w.counters()
		if vm == nil || stats == nil {
			continue
		}
		for _, m := range vmMetrics {
			give(m.metric, m.value(stats), vm.Spec.Name)
		}
	}
}

func (c collector) cluster(give func(m metric, v float64, labels ...string)) {
	snap := c.s.board.now()
	st := snap.state
	give(metricBuild, 1, Version)
	give(metricEpoch, float64(snap.status.Epoch))
	give(metricQuorum, one(snap.leased(bootMicros())))
	give(metricLeader, one(snap.status.Leader == snap.status.Server && snap.status.Quorum))
	give(metricEvents, float64(snap.events.lastSeq()))
	count := func(m metric, words []string, each func(func(string))) {
		n := map[string]int{}
		for _, w := range words {
			n[w] = 0
		}
		each(func(w string) { n[w]++ })
		for w, n := range n {
			give(m, float64(n), w)
		}
	}
	count(metricServers, []string{"live", "dead", "joining"}, func(add func(string)) {
		for i := range st.Servers {
			add(serverStates[st.Servers[i].State].Word())
		}
	})
	count(metricCells, []string{"live", "degraded", "dead"}, func(add func(string)) {
		for _, c := range cellMessages(st) {
			add(c.State.Word())
		}
	})
	count(metricVMs, []string{"starting", "running", "stopped", "exited", "lost", "failed"}, func(add func(string)) {
		for i := range st.VMs {
			add(vmStates[st.VMs[i].State].Word())
		}
	})
	count(metricProtection, []string{"safe", "syncing", "unprotected"}, func(add func(string)) {
		for i := range st.VMs {
			if vm := &st.VMs[i]; vm.State == cells.VMRunning && vm.Spec.Protect == cells.ProtectReplica {
				add(vm.Protection())
			}
		}
	})
	count(metricOperations, []string{"running", "done", "failed", "cancelled"}, func(add func(string)) {
		for i := range st.Operations {
			add(opStates[st.Operations[i].State].Word())
		}
	})
	if self := snap.self(); self != nil {
		l := loads(st)[self.ID]
		give(metricSlots, float64(self.Slots))
		give(metricSlotsUsed, float64(l.slots))
		give(metricMemory, float64(self.MemoryBytes))
		give(metricMemoryUsed, float64(l.memory))
		give(metricCordoned, one(self.Cordoned))
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsEndpoint is the HTTP server that Prometheus asks.
type metricsEndpoint struct {
	http     *http.Server
	listener net.Listener
}

// listenMetrics opens the endpoint; nil if the configuration names none.
func listenMetrics(s *Server) (*metricsEndpoint, error) {
	if s.cfg.Listen.Metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", s.cfg.Listen.Metrics)
	if err != nil {
		return nil, fmt.Errorf("metrics on %s: %w; is another server running there?", s.cfg.Listen.Metrics, err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return &metricsEndpoint{listener: l, http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}}, nil
}

func (m *metricsEndpoint) serve(s *Server) {
	if err := m.http.Serve(m.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		s.log.Error().Err(err).Msg("the metrics endpoint stopped listening")
	}
}

// Close ends the endpoint; nil is one that was never opened.
func (m *metricsEndpoint) Close() {
	if m == nil {
		return
	}
	m.listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if m.http.Shutdown(ctx) != nil {
		m.http.Close()
	}
}
