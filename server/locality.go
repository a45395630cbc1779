package server

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/mem/locality"
	"github.com/cellvisor/cellvisor/wire"
)

// checkLocality refuses a policy that does not exist.
func checkLocality(options map[string]string) error {
	name, given := options[wire.OptionLocality]
	if _, known := locality.Parse(name); given && !known {
		return status.Errorf(codes.InvalidArgument, "option %s=%.32q: choose one of %s", wire.OptionLocality, name, strings.Join(locality.Policies(), ", "))
	}
	return nil
}

// localityMessage tells what a worker's vCPUs wait for, nil if nobody counts.
func localityMessage(vm *cells.VM, l *wire.WorkerLocality) *api.LocalityCounters {
	if l == nil {
		return nil
	}
	out := &api.LocalityCounters{Policy: l.Policy, Ahead: l.Ahead, Moved: l.Moved, Homes: l.Homes}
	for _, h := range l.Hot {
		r := &api.HotRegion{Page: uint64(h.Page), Pages: uint32(h.Pages), Faults: uint32(h.Faults), WaitedMicros: uint64(h.WaitedMicros), Around: h.Around}
		if h.VCPU != nil {
			id := uint32(*h.VCPU)
			r.Vcpu = &id
		}
		for i := range vm.Parts {
			if p := &vm.Parts[i]; p.Part == h.Peer && !p.Gone {
				r.From = string(p.ServerName)
			}
		}
		out.Hot = append(out.Hot, r)
	}
	return out
}
