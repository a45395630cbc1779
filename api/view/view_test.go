package view

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cellvisor/cellvisor/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The names of JSON fields are an interface: each view is compared with a golden file, and each name must be documented.
func TestGolden(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC))
	vm := &api.VM{
		Id: 7, Name: "alpha", State: api.VMState_VM_STATE_LOST, Reason: "cell b lost in epoch 7", Vcpus: 4, MemoryBytes: 64 << 20,
		Cells: []string{"a", "b"}, Home: "a-1", Protect: "none", OnLoss: api.OnLoss_ON_LOSS_STOP, Epoch: 6, Payload: "lock", Args: "100",
		Span: []string{"a", "b"}, CreatedAt: at, StartedAt: at, EndedAt: at, Registers: "rip 0x400000", ConsoleBytes: 10, OutputRecords: 3,
		Workers: []*api.Worker{
			{Part: 0, Server: "a-1", Pid: 10, Vcpus: []uint32{0, 1}, Addr: "127.0.0.1:1", Ready: true, Cell: "a", Counters: &api.WorkerCounters{RemoteReads: 1}},
			{Part: 1, Server: "b-1", Pid: 11, Vcpus: []uint32{2, 3}, Addr: "127.0.0.1:2", Cell: "b", Lost: true},
		},
	}
	for name, v := range map[string]any{
		"status": OfStatus(&api.StatusResponse{ClusterId: "c1", ClusterName: "lab", Epoch: 3, Quorum: true, Leader: "a-1", ServersLive: 3, ServersTotal: 3, Server: "a-1",
			ServerState: api.ServerState_SERVER_STATE_LIVE, Version: "v1"}),
		"server":    OfServer(&api.Server{Name: "a-1", Cell: "a", Pid: 5, State: api.ServerState_SERVER_STATE_LIVE, Addr: "127.0.0.1:1", Role: api.ServerRole_SERVER_ROLE_SERVER}),
		"cell":      OfCell(&api.Cell{Name: "a", State: api.CellState_CELL_STATE_DEGRADED, Servers: []string{"a-1", "a-2"}, ServersLive: 1}),
		"vm":        OfVM(vm),
		"vm-fresh":  OfVM(&api.VM{Name: "x", State: api.VMState_VM_STATE_STARTING}),
		"event":     OfEvent(&api.Event{Seq: 1, Time: at, Type: "vm.lost", Epoch: 7, Cell: "b", Server: "b-1", Vm: "alpha", Message: "m", RecordedBy: "a-1", LogIndex: 9, Stage: "detect", StageMicros: 5, CauseSeq: 1, Fields: map[string]string{"k": "v"}}),
		"cell-none": OfCell(&api.Cell{Name: "a"}),
		"operation": OfOperation(&api.Operation{Id: 9, Kind: api.OperationKind_OPERATION_KIND_DRAIN, Subject: "cell b", State: api.OperationState_OPERATION_STATE_RUNNING,
			Note: "n", Reason: "r", By: "root", MaxParallel: 4, StartedAt: at, DeadlineAt: at, Steps: []*api.OperationStep{
				{Kind: "move", State: "done", Vm: "web", From: "b-1", To: "c-1", Bytes: 64 << 20, DownMicros: 5000}, {Kind: "standby", State: "waiting", Vm: "db", From: "b-1"}}}),
		"balance": OfBalance(&api.BalanceResponse{Mode: "auto", Score: 500, Root: "a-1", Depth: 1, Servers: []*api.ServerLoad{
			{Server: "a-1", Cell: "a", Slots: 4, Vcpus: 6, Busy: 5}, {Server: "b-1", Cell: "b", Slots: 4, Cordoned: true, Parent: "a-1"}}}),
		"server-detail": OfServerDetail(&api.Server{Name: "a-1"}, map[string]uint64{"api.calls": 3}),
		"slices":        OfSlices(&api.SlicesResponse{Server: "a-1", NowMicros: 9, Slots: 2, Slices: []*api.Slice{{Vm: "web", VmId: 7, Number: 3, BeginMicros: 1, EndMicros: 2, Slots: []uint32{0}}}}),
		"pages":         OfPageMap(&api.PageMapResponse{VmId: 7, Pages: 4, PagesPerRegion: 2, Holders: []*api.PageHolder{{Server: "a-1", Cell: "a", Shared: []uint32{1, 0}, Modified: []uint32{0, 2}}}}),
		"disk":          OfDisk(&api.DiskInfo{Name: "db", Vm: "web", SizeBytes: 1 << 20, Copies: []*api.DiskCopy{{Server: "a-1", Cell: "a", State: "current", Home: true, Live: true}}}),
		"revoked":       OfRevoked(&api.RevokeResponse{Added: 1, Total: 2}),
		"safety":        OfSafety(&api.SafeToStopResponse{Safe: true}),
	} {
		got, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got)+"\n" != string(want) {
			t.Errorf("%s: scripts depend on these names; if the change is an addition, run with -update\ngot\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestFieldsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{Status{}, Server{}, Cell{}, VM{}, Worker{}, Counters{}, Locality{}, HotRegion{}, Event{}, Operation{}, Step{}, Safety{}, Balance{}, ServerLoad{}, Slices{}, Slice{}, PageMap{}, PageHolder{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(string(doc), "`"+name+"`") {
				t.Errorf("%s: field %q is not in docs/json.md", typ.Name(), name)
			}
		}
	}
}
