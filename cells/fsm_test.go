package cells

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/cellvisor/cellvisor/ident"
)

// testHooks place each VM's vCPUs one a server, in order of IDs, and let a VM end if it lost a part.
type testHooks struct{}

func (testHooks) Place(st *State, spec *VMSpec) ([]PlacedPart, *Fault) {
	var out []PlacedPart
	for i := range st.Servers {
		s := &st.Servers[i]
		if s.State == ServerLive && s.Role == RoleServer && len(out) < spec.VCPUs && (len(spec.Span) == 0 || slices.Contains(spec.Span, s.Cell)) {
			out = append(out, PlacedPart{Server: s.ID, VCPUs: []ident.VCPU{ident.VCPU(len(out))}})
		}
	}
	if len(out) < spec.VCPUs {
		return nil, faultf(CodeNoCapacity, "%d vCPUs do not fit", spec.VCPUs)
	}
	return out, nil
}

func (testHooks) Standbys(*State, *VM) []ident.ServerID { return nil }

func (testHooks) Contain(loss Loss, vm *VM) Outcome {
	var gone []ident.Part
	for _, p := range vm.Parts {
		for _, l := range loss.Servers {
			if l.Server == p.Server && l.Incarnation == p.Incarnation {
				gone = append(gone, p.Part)
			}
		}
	}
	switch {
	case len(gone) == 0:
		return Outcome{}
	case vm.Spec.OnLoss == OnLossTouch && vm.State == VMRunning && !slices.Contains(gone, vm.Home):
		return Outcome{Kind: OutcomeContinue, Reason: "test", Gone: gone}
	}
	return Outcome{Kind: OutcomeLost, Reason: fmt.Sprintf("lost in epoch %d", loss.Epoch), Gone: gone}
}

func newTestFSM() *FSM {
	initial := []InitialServer{
		{ID: 1, Name: "a-1", Cell: "a", Role: RoleServer}, {ID: 2, Name: "b-1", Cell: "b", Role: RoleServer},
		{ID: 3, Name: "b-2", Cell: "b", Role: RoleServer}, {ID: 4, Name: "witness", Role: RoleWitness},
	}
	return NewFSM("test", initial, Hooks{Placer: testHooks{}, Container: testHooks{}})
}

func testInfo(s *Server, boot string) ServerInfo {
	return ServerInfo{Name: s.Name, Cell: s.Cell, Role: s.Role, HostID: "host", Process: Process{PID: 100, StartTime: 1, Boot: boot}, Slots: 4, MemoryBytes: ident.GiB}
}

// fsmScript applies the commands of a script to one state machine. Each line of input is one command of the log.
type fsmScript struct {
	f     *FSM
	index uint64
}

func (x *fsmScript) apply(term uint64, c Command) string {
	x.index++
	c.Version, c.By, c.UnixMs = CommandVersion, 1, int64(x.index)
	if c.Request == "" {
		c.Request = RequestID("r" + strconv.FormatUint(x.index, 10))
	}
	b, err := EncodeCommand(&c)
	if err != nil {
		return err.Error() + "\n"
	}
	return x.applied(x.f.Apply(x.index, term, b))
}

func (x *fsmScript) applied(a Applied) string {
	x.f.Check()
	var out strings.Builder
	if a.Duplicate {
		out.WriteString("duplicate\n")
	}
	if a.Fault != nil {
		fmt.Fprintf(&out, "refused (%s): %s\n", a.Fault.Code, a.Fault.Text)
	}
	for _, e := range a.Events {
		fmt.Fprintf(&out, "event %d %s [%s] %s", e.Seq, e.Kind, e.Subject, e.Text)
		if e.Cause != 0 {
			fmt.Fprintf(&out, " (after %d)", e.Cause)
		}
		out.WriteString("\n")
	}
	if out.Len() == 0 {
		return "ok\n"
	}
	return out.String()
}

func (x *fsmScript) server(name string) *Server {
	s := x.f.state.ServerNamed(ident.ServerName(name))
	if s == nil {
		return &Server{ID: 99, Name: ident.ServerName(name), Cell: "z", Role: RoleServer}
	}
	return s
}

func (x *fsmScript) vmPart(a args) (ident.VMID, ident.Part, ident.ServerID, ident.Incarnation) {
	s := x.server(a["on"])
	inc := s.Incarnation
	if v := a["inc"]; v != "" {
		inc = ident.Incarnation(a.num("inc"))
	}
	id := ident.VMID(0)
	if vm := x.f.state.VMNamed(a["vm"]); vm != nil {
		id = vm.ID
	}
	return id, ident.Part(a.num("part")), s.ID, inc
}

type args map[string]string

func (a args) num(key string) uint64 {
	n, _ := strconv.ParseUint(a[key], 10, 64)
	return n
}

func (x *fsmScript) line(words []string) string {
	a := args{}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		a[k] = v
	}
	req := RequestID(a["req"])
	s := x.server(a["server"])
	base, boot := s.Incarnation, s.Process.Boot
	if a["base"] != "" {
		base = ident.Incarnation(a.num("base"))
	}
	switch words[0] {
	case "admit":
		return x.apply(1, Command{Request: req, Admit: &Admit{Server: s.ID, BaseIncarnation: base, BaseBoot: boot, Info: testInfo(s, a["boot"])}})
	case "resume":
		return x.apply(1, Command{Request: req, Resume: &Resume{Server: s.ID, BaseIncarnation: base, BaseBoot: boot, Info: testInfo(s, a["boot"])}})
	case "exclude":
		c := Exclude{Term: 1}
		for _, n := range strings.Split(a["servers"], ",") {
			t := x.server(n)
			e := Excluded{Server: t.ID, Incarnation: t.Incarnation, Boot: t.Process.Boot, Cause: "its lease lapsed"}
			if a["boot"] != "" {
				e.Boot = a["boot"]
			}
			c.Targets = append(c.Targets, e)
		}
		term := uint64(1)
		if a["term"] != "" {
			term = a.num("term")
		}
		return x.apply(term, Command{Request: req, Exclude: &c})
	case "add":
		return x.apply(1, Command{AddServer: &AddServer{Info: testInfo(&Server{Name: ident.ServerName(a["server"]), Cell: ident.CellName(a["cell"]), Role: RoleServer}, a["boot"])}})
	case "remove":
		return x.apply(1, Command{RemoveServer: &RemoveServer{Name: ident.ServerName(a["server"])}})
	case "cordon":
		return x.apply(1, Command{Cordon: &Cordon{Server: ident.ServerName(a["server"]), Cell: ident.CellName(a["cell"]), On: a["on"] == "yes"}})
	case "create":
		spec := VMSpec{Name: a["vm"], Builtin: "count", VCPUs: int(a.num("vcpus")), MemoryBytes: 64 * ident.MiB, OnLoss: OnLoss(a["onloss"])}
		for _, c := range strings.Split(a["span"], ",") {
			if c != "" {
				spec.Span = append(spec.Span, ident.CellName(c))
			}
		}
		return x.apply(1, Command{Request: req, CreateVM: &CreateVM{Spec: spec, Secret: strings.Repeat("a", 64)}})
	case "ready":
		vm, part, on, inc := x.vmPart(a)
		return x.apply(1, Command{PartReady: &PartReady{VM: vm, Part: part, Server: on, Incarnation: inc, PID: 7, Addr: "addr"}})
	case "gone":
		vm, part, on, inc := x.vmPart(a)
		return x.apply(1, Command{PartGone: &PartGone{VM: vm, Part: part, Server: on, Incarnation: inc, PID: int(a.num("pid")), Reason: "killed by signal 9"}})
	case "end":
		vm, part, on, inc := x.vmPart(a)
		return x.apply(1, Command{EndVM: &EndVM{VM: vm, Part: part, Server: on, Incarnation: inc, State: VMState(a["state"]), ExitStatus: uint32(a.num("status")), Reason: a["reason"]}})
	case "stop":
		return x.apply(1, Command{StopVM: &StopVM{Name: a["vm"]}})
	case "rm":
		return x.apply(1, Command{RemoveVM: &RemoveVM{Name: a["vm"]}})
	case "raw":
		x.index++
		return x.applied(x.f.Apply(x.index, 1, []byte(strings.Join(words[1:], " "))))
	case "snapshot":
		b, err := x.f.Snapshot()
		if err != nil {
			return err.Error() + "\n"
		}
		g := newTestFSM()
		if err := g.Restore(b); err != nil {
			return err.Error() + "\n"
		}
		x.f = g
		return "ok\n"
	case "show":
		return x.show()
	}
	return "unknown: " + words[0] + "\n"
}

func (x *fsmScript) show() string {
	var out strings.Builder
	st := &x.f.state
	fmt.Fprintf(&out, "epoch %d\n", st.View.Epoch)
	for _, s := range st.Servers {
		fmt.Fprintf(&out, "server %d %s cell=%s %s inc=%d boot=%s\n", s.ID, s.Name, s.Cell, s.State, s.Incarnation, s.Process.Boot)
	}
	for _, vm := range st.VMs {
		fmt.Fprintf(&out, "vm %d %s %s epoch=%d", vm.ID, vm.Spec.Name, vm.State, vm.Epoch)
		if vm.Reason != "" {
			fmt.Fprintf(&out, " (%s)", vm.Reason)
		}
		for _, p := range vm.Parts {
			fmt.Fprintf(&out, " p%d:%s/%d ready=%v gone=%v", p.Part, p.ServerName, p.Incarnation, p.Ready, p.Gone)
		}
		out.WriteString("\n")
	}
	return out.String()
}

func TestFSMScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/fsm", func(t *testing.T, path string) {
		x := &fsmScript{f: newTestFSM()}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for _, line := range strings.Split(d.Input, "\n") {
				if words := strings.Fields(line); len(words) > 0 {
					out.WriteString(x.line(words))
				}
			}
			return out.String()
		})
	})
}

// Equal logs give equal states, byte for byte, also when one replica was restored from a snapshot on the way.
func TestDeterminism(t *testing.T) {
	lines := []string{
		"admit server=a-1 boot=x1", "admit server=b-1 boot=x2", "admit server=b-2 boot=x3", "admit server=witness boot=x4",
		"create vm=one vcpus=3", "ready vm=one part=0 on=a-1", "ready vm=one part=1 on=b-1", "ready vm=one part=2 on=b-2",
		"create vm=two vcpus=1", "exclude servers=b-1,b-2", "add server=b-3 cell=b boot=y", "stop vm=two", "rm vm=two", "cordon cell=a on=yes",
	}
	var logs [][]byte
	record := &fsmScript{f: newTestFSM()}
	for cut := range lines {
		x := &fsmScript{f: newTestFSM()}
		for i, l := range lines {
			x.line(strings.Fields(l))
			if i == cut {
				x.line([]string{"snapshot"})
			}
		}
		b, err := x.f.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, b)
	}
	for _, l := range lines {
		record.line(strings.Fields(l))
	}
	want, err := record.f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for cut, b := range logs {
		if string(b) != string(want) {
			t.Fatalf("restored after line %d, the state ends up different:\n%s\n%s", cut, b, want)
		}
	}
}

func TestRequestsAreForgottenInOrder(t *testing.T) {
	f := newTestFSM()
	apply := func(i int) Applied {
		b, err := EncodeCommand(&Command{Version: CommandVersion, Request: RequestID(fmt.Sprint("q", i)), Report: &Report{Kind: "t"}})
		if err != nil {
			t.Fatal(err)
		}
		return f.Apply(uint64(i+1), 1, b)
	}
	n := 3 * MaxRequests
	for i := range n {
		if a := apply(i); a.Duplicate || a.Fault != nil {
			t.Fatalf("request %d: %+v", i, a)
		}
	}
	for i := n - MaxRequests; i < n; i++ {
		if _, _, ok := f.Outcome(RequestID(fmt.Sprint("q", i))); !ok {
			t.Fatalf("request %d of %d is forgotten", i, n)
		}
	}
	if _, _, ok := f.Outcome("q0"); ok || len(f.byID) != len(f.requests) || len(f.requests) > 2*MaxRequests {
		t.Errorf("the table of requests grows: %d and %d entries", len(f.byID), len(f.requests))
	}
}

func TestEventsAreBounded(t *testing.T) {
	f := newTestFSM()
	for i := range 3 * MaxEvents {
		b, _ := json.Marshal(Command{Version: CommandVersion, Report: &Report{Kind: "t", Text: fmt.Sprint(i)}})
		f.Apply(uint64(i+1), 1, b)
	}
	events, oldest := f.EventsSince(0, MaxEvents*2)
	if len(events) != MaxEvents || oldest != uint64(2*MaxEvents+1) || events[0].Seq != oldest {
		t.Fatalf("%d events from %d", len(events), oldest)
	}
	events, _ = f.EventsSince(uint64(3*MaxEvents-2), 10)
	if len(events) != 2 || events[1].Seq != uint64(3*MaxEvents) {
		t.Fatalf("the last two events: %+v", events)
	}
	if events, _ = f.EventsSince(uint64(3*MaxEvents), 10); len(events) != 0 {
		t.Fatalf("events after the last: %+v", events)
	}
}

func FuzzApply(f *testing.F) {
	f.Add([]byte(`{"v":1,"req":"a-1","create_vm":{"spec":{"name":"x","builtin":"count","vcpus":1,"memory_bytes":4096},"secret":"` + strings.Repeat("0", 64) + `"}}`))
	f.Add([]byte(`{"v":1,"admit":{"server":1,"info":{"name":"a-1","cell":"a","role":"server","process":{"boot":"b"}}}}`))
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`{"v":1,"exclude":{"term":1,"targets":[{"server":1}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x := &fsmScript{f: newTestFSM()}
		for i, s := range []string{"a-1", "b-1", "b-2"} {
			x.line([]string{"admit", "server=" + s, fmt.Sprint("boot=", i)})
		}
		x.line(strings.Fields("create vm=one vcpus=2"))
		x.index++
		a := x.f.Apply(x.index, 1, b)
		x.f.Check()
		if a.Fault != nil && (len(a.Events) > 0 || a.View) {
			t.Fatalf("a refused command changed something: %+v", a)
		}
		snap, err := x.f.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := newTestFSM().Restore(snap); err != nil {
			t.Fatal(err)
		}
	})
}
