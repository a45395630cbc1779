package server

import (
	"context"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/cellvisor/cellvisor/api"
)

// DebugCounters implements api.CellvisorServer.
func (v *service) DebugCounters(ctx context.Context, req *api.DebugCountersRequest) (*api.DebugCountersResponse, error) {
	if req.GetServer() != "" && req.GetServer() != string(v.s.cfg.Name) {
		sv, err := v.server(v.s.board.now(), req.GetServer())
		if err != nil {
			return nil, err
		}
		client, err := v.at(ctx, sv)
		if err != nil {
			return nil, err
		}
		return client.DebugCounters(v.forward(ctx), req)
	}
	return &api.DebugCountersResponse{Server: string(v.s.cfg.Name), Counters: v.s.counters()}, nil
}

// counters collects all counters of this process and its workers by name.
func (s *Server) counters() map[string]uint64 {
	v := s.service
	out := map[string]uint64{
		"loop.inbox":             uint64(len(s.inbox)),
		"loop.long_turns":        s.count.longTurns.Load(),
		"loop.late_turns":        s.count.lateTurns.Load(),
		"loop.proposals":         s.proposals.Load(),
		"disk.saves":             s.count.saves.Load(),
		"disk.save_micros":       s.count.saveMicros.Load(),
		"hints":                  s.count.hints.Load(),
		"payloads.fetched":       s.count.blobFetches.Load(),
		"api.calls":              v.calls.Load(),
		"api.forwards":           v.forwards.Load(),
		"api.panics":             v.panics.Load(),
		"api.strangers":          v.access.strangers.Load(),
		"api.revoked":            v.access.revoked.Load(),
		"api.ended":              v.access.ended.Load(),
		"api.denied":             v.access.denied.Load(),
		"workers.started":        s.workers.counts.started.Load(),
		"workers.adopted":        s.workers.counts.adopted.Load(),
		"workers.gone":           s.workers.counts.gone.Load(),
		"workers.killed":         s.workers.counts.killed.Load(),
		"workers.redials":        s.workers.counts.redials.Load(),
		"workers.fenced":         s.workers.counts.fenced.Load(),
		"workers.failed_starts":  s.workers.counts.failedStarts.Load(),
		"workers.refused_dials":  s.workers.counts.refusedDials.Load(),
		"workers.running":        uint64(s.workers.running()),
		"gossip.members":         uint64(s.gossip.serf.NumNodes()),
		"monitor.applied":        s.board.now().state.Applied,
		"monitor.epoch":          uint64(s.board.now().status.Epoch),
		"monitor.term":           s.board.now().status.Term,
		"monitor.servers_in_log": uint64(len(s.board.now().state.Servers)),
	}
	addCounters(out, "monitor.", s.board.now().counters)
	addCounters(out, "peers.", s.peers.Counters())
	s.workers.addStats(out)
	s.gangs.addStats(out)
	s.loads.addStats(out)
	s.lends.shared.addStats(out)
	return out
}

// addCounters adds all fields of a struct of counters under their names.
func addCounters(out map[string]uint64, prefix string, counters any) {
	v := reflect.ValueOf(counters)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Type.Kind() == reflect.Uint64 {
			out[prefix+snake(f.Name)] = v.Field(i).Uint()
		}
	}
}

// snake turns "RefusedVotes" into "refused_votes".
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// StopServer implements api.CellvisorServer: the answer goes out before the end begins.
func (v *service) StopServer(context.Context, *api.StopServerRequest) (*api.StopServerResponse, error) {
	v.s.log.Info().Msg("asked to stop")
	const answerFirst = 20 * time.Millisecond
	time.AfterFunc(answerFirst, func() { v.s.stop(errAsked) })
	return &api.StopServerResponse{}, nil
}
