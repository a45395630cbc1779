package cells

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/ident"
)

// MaxRequests is how many results of past requests are remembered, so that a request that comes again is answered, not applied. A
// proposer gives up long before this many others are applied after its first attempt.
const MaxRequests = 4096

// snapshotVersion is the version of the snapshot's encoding.
const snapshotVersion = 1

// Applied is what one log entry did.
type Applied struct {
	Index     uint64
	Term      uint64
	Command   *Command // nil for an entry without one
	Result    []byte   // JSON
	Fault     *Fault   // why it was refused; then it changed nothing
	Events    []Event
	Duplicate bool // it had been applied before: Result and Fault are those of then
	View      bool // the view changed
}

// FSM is the deterministic state machine that the log drives. Nothing but Apply and Restore changes it.
type FSM struct {
	state    State
	events   []Event // rising Seq; at most MaxEvents, but for slack
	requests []pastRequest
	byID     map[RequestID]int // position in requests, plus dropped
	dropped  int               // how many were ever removed from the front of requests
	hooks    Hooks
	pending  []Event // of the entry being applied
	now      *Command
	roomier  bool // the entry being applied has made room for standbys that VMs lack
}

type pastRequest struct {
	ID     RequestID       `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Fault  *Fault          `json:"fault,omitempty"`
}

type snapshot struct {
	Version  int           `json:"version"`
	State    State         `json:"state"`
	Events   []Event       `json:"events"`
	Requests []pastRequest `json:"requests"`
}

// NewFSM returns the state of a cluster before its first log entry.
func NewFSM(clusterID string, initial []InitialServer, hooks Hooks) *FSM {
	f := &FSM{hooks: hooks, byID: make(map[RequestID]int)}
	f.state = State{ClusterID: clusterID, NextSeq: 1}
	for _, s := range initial {
		f.state.Servers = append(f.state.Servers, Server{
			ID: s.ID, Name: s.Name, Cell: s.Cell, Role: s.Role, Addrs: s.Addrs, State: ServerJoining,
		})
	}
	slices.SortFunc(f.state.Servers, func(a, b Server) int { return compareIDs(a.ID, b.ID) })
	return f
}

func compareIDs[T ~uint64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// State returns the state. The caller must not change it, nor keep it over the next Apply: State.Clone does.
func (f *FSM) State() *State { return &f.state }

// Apply applies one entry. It never panics on what an entry holds: an entry that makes no sense is refused with a Fault.
func (f *FSM) Apply(index, term uint64, data []byte) Applied {
	out := Applied{Index: index, Term: term}
	f.state.Applied = index
	cmd, fault := DecodeCommand(data)
	out.Command = cmd
	if i, ok := f.byID[cmd.Request]; ok && cmd.Request != "" && f.hooks.Canary != CanaryTwice {
		past := f.requests[i-f.dropped]
		out.Result, out.Fault, out.Duplicate = past.Result, past.Fault, true
		return out
	}
	f.pending, f.now, f.roomier = nil, cmd, false
	epoch := f.state.View.Epoch
	var result any
	if fault == nil {
		result, fault = f.dispatch(cmd, index, term)
	}
	if fault == nil {
		f.tendStarts()
		f.tendOperations()
		f.useRoom()
		f.tendDisks()
	}
	if fault == nil && result != nil {
		b, err := json.Marshal(result)
		if err != nil {
			fault = faultf(CodeInvalid, "result cannot be encoded: %v", err)
		}
		out.Result = b
	}
	out.Fault = fault
	f.events = append(f.events, f.pending...)
	if len(f.events) > MaxEvents+MaxEvents/8 {
		f.events = slices.Clone(f.events[len(f.events)-MaxEvents:])
	}
	out.Events = f.pending
	out.View = f.state.View.Epoch != epoch
	f.pending, f.now = nil, nil
	f.remember(cmd.Request, out.Result, fault)
	return out
}

func (f *FSM) remember(id RequestID, result []byte, fault *Fault) {
	if id == "" {
		return
	}
	f.byID[id] = f.dropped + len(f.requests)
	f.requests = append(f.requests, pastRequest{ID: id, Result: result, Fault: fault})
	if len(f.requests) <= MaxRequests+MaxRequests/8 {
		return
	}
	drop := len(f.requests) - MaxRequests
	for _, r := range f.requests[:drop] {
		delete(f.byID, r.ID)
	}
	f.requests = slices.Clone(f.requests[drop:])
	f.dropped += drop
}

// Outcome returns what became of a request, if it was applied and is still remembered.
func (f *FSM) Outcome(id RequestID) (result []byte, fault *Fault, ok bool) {
	i, ok := f.byID[id]
	if !ok {
		return nil, nil, false
	}
	r := f.requests[i-f.dropped]
	return r.Result, r.Fault, true
}

func (f *FSM) dispatch(c *Command, index, term uint64) (any, *Fault) {
	if len(c.Request) > 64 {
		return nil, faultf(CodeInvalid, "request id of %d bytes exceeds 64", len(c.Request))
	}
	switch {
	case c.AddServer != nil:
		return f.addServer(c.AddServer, index)
	case c.RemoveServer != nil:
		return nil, f.removeServer(c.RemoveServer)
	case c.Admit != nil:
		return nil, f.admit(c.Admit)
	case c.Resume != nil:
		return nil, f.resume(c.Resume)
	case c.Exclude != nil:
		return nil, f.exclude(c.Exclude, term)
	case c.Cordon != nil:
		return nil, f.cordon(c.Cordon)
	case c.ServerError != nil:
		return nil, f.serverError(c.ServerError)
	case c.CreateVM != nil:
		return f.createVM(c.CreateVM, index)
	case c.StopVM != nil:
		return nil, f.stopVM(c.StopVM)
	case c.RemoveVM != nil:
		return nil, f.removeVM(c.RemoveVM)
	case c.DisksOpened != nil:
		return nil, f.disksOpened(c.DisksOpened)
	case c.RemoveDisk != nil:
		return nil, f.removeDisk(c.RemoveDisk)
	case c.PartReady != nil:
		return nil, f.partReady(c.PartReady)
	case c.PartGone != nil:
		return nil, f.partGone(c.PartGone)
	case c.GiveUpPart != nil:
		return nil, f.giveUpPart(c.GiveUpPart)
	case c.ProtectVM != nil:
		return nil, f.protectVM(c.ProtectVM)
	case c.VMProtected != nil:
		return nil, f.vmProtected(c.VMProtected)
	case c.EndVM != nil:
		return nil, f.endVM(c.EndVM)
	case c.Report != nil:
		return nil, f.report(c.Report)
	case c.ResetVM != nil:
		return nil, f.resetVM(c.ResetVM)
	}
	return f.dispatchOperation(c, index)
}

// dispatchOperation applies the commands of operations, moves, pauses and certificates.
func (f *FSM) dispatchOperation(c *Command, index uint64) (any, *Fault) {
	switch {
	case c.StartOperation != nil:
		return f.startOperation(c.StartOperation, index)
	case c.EndOperation != nil:
		return nil, f.endOperation(c.EndOperation)
	case c.SwitchVM != nil:
		return nil, f.switchVM(c.SwitchVM)
	case c.VMResumed != nil:
		return nil, f.vmResumed(c.VMResumed)
	case c.VMMoved != nil:
		return nil, f.vmMoved(c.VMMoved)
	case c.VMBorrows != nil:
		return nil, f.vmBorrows(c.VMBorrows)
	case c.AbandonMove != nil:
		return nil, f.abandonMove(c.AbandonMove)
	case c.VCPUHanded != nil:
		return nil, f.vcpuHanded(c.VCPUHanded)
	case c.PullVCPU != nil:
		return nil, f.pullVCPU(c.PullVCPU)
	case c.SetBalance != nil:
		return nil, f.setBalance(c.SetBalance)
	case c.Loads != nil:
		return nil, f.loads(c.Loads)
	case c.PauseVM != nil:
		return nil, f.pauseVM(c.PauseVM)
	case c.PartPaused != nil:
		return nil, f.partPaused(c.PartPaused)
	case c.SaveVM != nil:
		return nil, f.saveVM(c.SaveVM)
	case c.EndSave != nil:
		return nil, f.endSave(c.EndSave)
	case c.Revoke != nil:
		return f.revoke(c.Revoke)
	}
	return nil, faultf(CodeUnknown, "command is not known here: another version of the program proposed it")
}

// emit records an event of the entry being applied and returns its sequence number.
func (f *FSM) emit(e Event) uint64 {
	e.Seq = f.state.NextSeq
	f.state.NextSeq++
	e.UnixMs = f.now.UnixMs
	e.Epoch = f.state.View.Epoch
	e.Text = clip(e.Text, 640)
	f.pending = append(f.pending, e)
	return e.Seq
}

func (f *FSM) report(r *Report) *Fault {
	if len(r.Fields) > 32 || len(r.Kind) > 64 || len(r.Subject) > 256 {
		return faultf(CodeInvalid, "report is too large")
	}
	for k, v := range r.Fields { // only sizes are looked at: order does not matter
		if len(k) > 64 || len(v) > 512 {
			return faultf(CodeInvalid, "report has a field that is too large")
		}
	}
	f.emit(Event{Kind: r.Kind, Subject: r.Subject, Text: r.Text, Fields: r.Fields, Cause: r.Cause})
	return nil
}

// EventsSince returns up to max events with sequence numbers above seq, in order, and the lowest number that is kept (0 if none is).
func (f *FSM) EventsSince(seq uint64, max int) (events []Event, oldest uint64) {
	kept := f.events
	if len(kept) > MaxEvents {
		kept = kept[len(kept)-MaxEvents:]
	}
	if len(kept) == 0 {
		return nil, 0
	}
	oldest = kept[0].Seq
	i, _ := slices.BinarySearchFunc(kept, seq+1, func(e Event, seq uint64) int { return compareIDs(e.Seq, seq) })
	end := min(len(kept), i+max)
	return slices.Clone(kept[i:end]), oldest
}

// Snapshot encodes the whole state.
func (f *FSM) Snapshot() ([]byte, error) {
	kept := f.events
	if len(kept) > MaxEvents {
		kept = kept[len(kept)-MaxEvents:]
	}
	past := f.requests
	if len(past) > MaxRequests {
		past = past[len(past)-MaxRequests:]
	}
	for { // what is oldest of what the state need not have goes, until the rest fits
		b, err := json.Marshal(snapshot{Version: snapshotVersion, State: f.state, Events: kept, Requests: past})
		if err != nil || len(b) <= MaxSnapshotBytes || len(kept)+len(past) == 0 {
			return b, err
		}
		kept, past = kept[(len(kept)+1)/2:], past[(len(past)+1)/2:]
	}
}

// fits tells whether the registry has room for another VM: a snapshot of it goes to other servers in one message.
func (f *FSM) fits(spec *VMSpec) *Fault {
	const few = 128 // VMs that fit whatever their specs are
	if len(f.state.VMs) < few {
		return nil
	}
	b, err := json.Marshal(f.state)
	more, merr := json.Marshal(spec)
	if n := len(b) + len(more); err != nil || merr != nil || n > MaxStateBytes {
		return faultf(CodeNoCapacity, "the registry holds %d vms, which take %d KiB of at most %d: remove ended ones", len(f.state.VMs), len(b)>>10, MaxStateBytes>>10)
	}
	return nil
}

// Restore takes the state from a snapshot.
func (f *FSM) Restore(b []byte) error {
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("cells: snapshot cannot be read: %w", err)
	}
	if s.Version != snapshotVersion {
		return fmt.Errorf("cells: snapshot has version %d, this program reads version %d", s.Version, snapshotVersion)
	}
	f.state, f.events, f.requests = s.State, s.Events, s.Requests
	f.byID = make(map[RequestID]int, len(s.Requests))
	f.dropped = 0
	for i, r := range s.Requests {
		f.byID[r.ID] = i
	}
	return nil
}

// Check panics if the state breaks an invariant.
func (f *FSM) Check() {
	st := &f.state
	live := 0
	for i := range st.Servers {
		s := &st.Servers[i]
		if i > 0 && st.Servers[i-1].ID >= s.ID {
			panic(fmt.Sprintf("cells: servers out of order at %d", s.ID))
		}
		if s.State == ServerLive {
			if live >= len(st.View.Live) || st.View.Live[live] != (Member{s.ID, s.Incarnation}) {
				panic(fmt.Sprintf("cells: server %d is live but not in view %d as incarnation %d", s.ID, st.View.Epoch, s.Incarnation))
			}
			live++
		}
		if ident.Epoch(s.Incarnation) > st.View.Epoch {
			panic(fmt.Sprintf("cells: server %d has incarnation %d in epoch %d", s.ID, s.Incarnation, st.View.Epoch))
		}
	}
	if live != len(st.View.Live) {
		panic(fmt.Sprintf("cells: view %d lists %d servers, %d are live", st.View.Epoch, len(st.View.Live), live))
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if !vm.State.Active() {
			continue
		}
		for _, p := range vm.Parts {
			if !p.Gone && !st.View.Has(p.Server, p.Incarnation) {
				panic(fmt.Sprintf("cells: vm %d is %s with part %d on server %d incarnation %d, which is not in view %d",
					vm.ID, vm.State, p.Part, p.Server, p.Incarnation, st.View.Epoch))
			}
		}
	}
}
