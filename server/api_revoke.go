package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/trust"
)

// Revoke implements api.CellvisorServer. Whoever may act may hand in a list; only who has the authority's key can have signed one.
func (v *service) Revoke(ctx context.Context, req *api.RevokeRequest) (*api.RevokeResponse, error) {
	if v.s.keys == nil {
		return nil, status.Error(codes.FailedPrecondition, "this cluster has no certificates: nobody can be refused for one")
	}
	list, err := v.s.keys.ReadList(req.GetList())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := v.s.needQuorum(); err != nil {
		return nil, err
	}
	c := &cells.Revoke{By: callerOf(ctx).name}
	for _, r := range list {
		c.Certs = append(c.Certs, cells.RevokedCert{Serial: r.Serial, UnixMs: r.At.UnixMilli()})
	}
	var out cells.RevokeResult
	if err := v.s.propose(ctx, cells.Command{Revoke: c}, &out); err != nil {
		return nil, err
	}
	return &api.RevokeResponse{Added: uint32(out.Added), Total: uint32(out.Total)}, nil
}

// refuse passes on to whoever checks certificates which of them the cluster has agreed to refuse. The loop calls it with each new state.
func (s *Server) refuse(old *snapshot, st *cells.State) {
	if s.keys == nil || old != nil && len(old.state.Revoked) == len(st.Revoked) { // the list only grows
		return
	}
	list := make([]trust.Revocation, len(st.Revoked))
	for i, r := range st.Revoked {
		list[i] = trust.Revocation{Serial: r.Serial, At: time.UnixMilli(r.UnixMs)}
	}
	s.keys.Refuse(list)
}
