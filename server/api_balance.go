package server

import (
	"context"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

// Balance implements api.CellvisorServer.
func (v *service) Balance(ctx context.Context, req *api.BalanceRequest) (*api.BalanceResponse, error) {
	if req.GetMode() != "" {
		if err := v.s.needQuorum(); err != nil {
			return nil, err
		}
		if err := v.s.propose(ctx, cells.Command{SetBalance: &cells.SetBalance{Mode: cells.BalanceMode(req.GetMode())}}, nil); err != nil {
			return nil, err
		}
	}
	v.catchUp(ctx)
	st := v.s.board.now().state
	servers, score, depth := monitor.Work(st)
	out := &api.BalanceResponse{Mode: string(st.BalanceMode()), Score: score, Depth: uint32(depth)}
	names := map[ident.ServerID]string{}
	for _, w := range servers {
		names[w.Server.ID] = string(w.Server.Name)
	}
	for _, w := range servers {
		if w.Parent == 0 {
			out.Root = names[w.Server.ID]
		}
		out.Servers = append(out.Servers, &api.ServerLoad{Server: names[w.Server.ID], Cell: string(w.Server.Cell), Slots: uint32(w.Server.Slots),
			Vcpus: uint32(w.VCPUs), Busy: uint32(w.Busy), Cordoned: w.Server.Cordoned, Parent: names[w.Parent]})
	}
	return out, nil
}
