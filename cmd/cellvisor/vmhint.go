package main

import (
	"context"
	"fmt"
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
