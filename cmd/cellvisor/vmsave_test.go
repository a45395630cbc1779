package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/cellvisor/cellvisor/api"
)

// oneVM is a server that knows of one VM.
type oneVM struct {
	api.UnimplementedCellvisorServer
	vm *api.VM
}

func (o *oneVM) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	return &api.StatusResponse{Quorum: true, ServerState: api.ServerState_SERVER_STATE_LIVE}, nil
}

func (o *oneVM) GetVM(context.Context, *api.GetVMRequest) (*api.GetVMResponse, error) {
	return &api.GetVMResponse{Vm: o.vm}, nil
}

// Where nobody said what became of a VM that was saved, its file counts unless the VM has gone on.
func TestAfterSave(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server, srv := &oneVM{}, grpc.NewServer()
	api.RegisterCellvisorServer(srv, server)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	c, err := api.Dial(t.Context(), "unix://"+filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	broke := errors.New("the call broke off")
	for _, now := range []struct {
		state  api.VMState
		seq    uint64
		counts bool
	}{
		{api.VMState_VM_STATE_STOPPED, 8, true},
		{api.VMState_VM_STATE_LOST, 7, true}, // in the pause that it was saved in
		{api.VMState_VM_STATE_LOST, 8, false},
		{api.VMState_VM_STATE_RUNNING, 8, false},
	} {
		file := filepath.Join(dir, "saved")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		server.vm = &api.VM{Name: "web", Id: 1, State: now.state, PauseSeq: now.seq}
		err := (&app{}).afterSave(c, &api.VM{Name: "web", Id: 1, PauseSeq: 7}, file, broke)
		_, missing := os.Stat(file)
		if (err == nil) != now.counts || (missing == nil) != now.counts {
			t.Errorf("%v, pause %d: %v, file %v", now.state, now.seq, err, missing)
		}
	}
}
