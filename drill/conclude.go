package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// conclude heals, and writes the report. It works after an interruption, too: it has a context of its own.
func (r *run) conclude(err error) {
	rep := r.report
	rep.Verdict, rep.Why = verdict(err)
	rep.TookMs = r.since(r.clock.Now())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), healPatience+30*time.Second)
	defer cancel()
	for _, name := range r.order {
		if r.clock.Stepped() {
			_ = r.followers[name].poll(ctx, r.cluster)
		}
	}
	last := r.obs.look(ctx)
	r.obs.publish(last)
	r.outputs()
	r.losses(last)
	r.step("undo", "healing")
	rep.Healing = heal(ctx, r.clock, r.host, r.journal, func(context.Context) (Cluster, func(), error) { return r.cluster, func() {}, nil })
	if !rep.Healing.OK {
		why := "the healing failed: " + rep.Healing.Problem + "; `cellvisor drill heal` tries again"
		if rep.Verdict == Passed {
			rep.Verdict, rep.Why = Failed, why
		} else {
			rep.Why += "; and " + why
		}
	}
	r.events(ctx)
	rep.Timeline = r.obs.timeline()
}

func verdict(err error) (Verdict, string) {
	var failed failedError
	var aborted abortedError
	switch {
	case err == nil:
		return Passed, ""
	case errors.As(err, &failed):
		return Failed, explain(err).Error()
	case errors.As(err, &aborted):
		return Aborted, explain(err).Error()
	}
	return Broken, api.Message(explain(err))
}

func (r *run) outputs() {
	for _, name := range r.order {
		records, longest, at := r.followers[name].summary()
		r.report.Outputs = append(r.report.Outputs, Output{VM: name, Records: records, LongestGapMs: longest.Milliseconds(), GapEndedMs: r.since(at)})
	}
}

func (r *run) losses(s *snapshot) {
	for _, name := range r.order {
		if v := s.vm(name); v.GetState() == api.VMState_VM_STATE_LOST {
			r.report.Lost = append(r.report.Lost, LostVM{VM: name, AtMs: r.since(v.GetEndedAt().AsTime()), Reason: v.GetReason()})
		}
	}
}

// events keeps what the cluster recorded since the start, and reads the stages of recoveries from it.
func (r *run) events(ctx context.Context) {
	r.report.Events = []Event{}
	all, err := r.cluster.Events(ctx)
	if err != nil {
		r.step("log", "the cluster's events could not be read: %s", api.Message(err))
		return
	}
	for _, e := range all {
		if e.GetLogIndex() <= r.lastEvent {
			continue
		}
		at := r.since(e.GetTime().AsTime())
		r.report.Events = append(r.report.Events, Event{AtMs: at, Type: e.GetType(), Epoch: e.GetEpoch(), Message: e.GetMessage()})
		if rec := (Recovery{AtMs: at, Epoch: e.GetEpoch(), Subject: subject(e), Stages: stagesOf(e.GetFields())}); len(rec.Stages) > 0 {
			r.report.Recoveries = append(r.report.Recoveries, rec)
		}
	}
}

func subject(e *api.Event) string {
	if e.GetVm() != "" {
		return "vm " + e.GetVm()
	}
	return "server " + e.GetServer()
}

// stageOrder is the order in which the stages of a recovery come.
var stageOrder = []string{"detect", "agree", "fence", "unwedge", "remap", "resume"}

// stagesOf reads the fields NAME_us of an event.
func stagesOf(fields map[string]string) (out []Stage) {
	for key, value := range fields {
		name, ok := strings.CutSuffix(key, "_us")
		if n, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			out = append(out, Stage{Name: name, Micros: n})
		}
	}
	slices.SortFunc(out, func(a, b Stage) int {
		if d := rank(a.Name) - rank(b.Name); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func rank(stage string) int {
	if i := slices.Index(stageOrder, stage); i >= 0 {
		return i
	}
	return len(stageOrder)
}

func seconds(ms int64) string { return fmt.Sprintf("%.2f s", float64(ms)/1000) }
