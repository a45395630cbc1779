package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
)

// whyRefused adds to a refusal for want of room what the operator must know first: that live servers cannot run VMs at all.
func whyRefused(ctx context.Context, c *api.Client, refusal error) error {
	if code := status.Code(refusal); code != codes.ResourceExhausted && code != codes.FailedPrecondition {
		return refusal
	}
	servers, err := listServers(ctx, c)
	if err != nil {
		return refusal
	}
	var unfit []string
	for _, s := range servers {
		if s.GetUnfitReason() != "" {
			unfit = append(unfit, fmt.Sprintf("%s: %s", s.GetName(), s.GetUnfitReason()))
		}
	}
	if len(unfit) == 0 {
		return refusal
	}
	return status.Errorf(status.Code(refusal), "%s\n%s; `cellvisor doctor` on that machine tells more", api.Message(refusal), strings.Join(unfit, "\n"))
}

// noteFewCells says that a VM asks for copies of itself, or of its disks, in more other cells than there are. It is no error: a cell may join later.
func (a *app) noteFewCells(ctx context.Context, c *api.Client, spec *api.VMSpec) {
	want := 0
	if k, replicas := strings.CutPrefix(spec.GetProtect(), "replica"); replicas {
		want = 1
		if n, err := strconv.Atoi(strings.TrimPrefix(k, ":")); err == nil {
			want = n
		}
	}
	for _, d := range spec.GetDisks() {
		want = max(want, int(d.GetMirrors()))
	}
	if want == 0 {
		return
	}
	servers, err := listServers(ctx, c)
	if err != nil {
		return
	}
	cells := map[string]bool{}
	for _, s := range servers {
		if s.GetCell() != "" {
			cells[s.GetCell()] = true
		}
	}
	if other := max(0, len(cells)-max(1, len(spec.GetSpan()))); other < want {
		fmt.Fprintf(a.err, "cellvisor: VM %s asks for copies in %d other cells, and the cluster has %d: it has no more copies until other cells join\n", spec.GetName(), want, other)
	}
}
