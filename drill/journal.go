package drill

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	journalFile    = "drill-journal.json"
	journalVersion = 1
)

// Kinds of faults. Each heals in one way: processes that were killed are started again, processes that were stopped are continued.
const (
	faultKill = "kill"
	faultStop = "stop"

	faultInject = "inject" // done by the server to itself; mended over its API, or by the end of its lease
)

// fault is something injected and not yet healed.
type fault struct {
	Kind      string     `json:"kind"`
	Server    string     `json:"server"`
	Cell      string     `json:"cell,omitempty"`
	Processes []Process  `json:"processes,omitempty"`
	Inject    *injection `json:"inject,omitempty"`
}

// journalVM is a VM that the drill started.
type journalVM struct {
	Name string `json:"name"`
	ID   uint64 `json:"id"` // 0 while its creation has not been confirmed
}

// journal lists what must be undone. It lies in the cluster's directory while a drill runs, and longer if its runner dies.
type journal struct {
	Version   int         `json:"version"`
	Drill     string      `json:"drill"`
	Runner    Process     `json:"runner"`
	StartedAt time.Time   `json:"started_at"`
	Faults    []fault     `json:"faults"`
	VMs       []journalVM `json:"vms"`
	Drained   []drained   `json:"drained,omitempty"`

	path string // "": nothing outlasts the runner, as on the simulator
}

// ErrNoJournal says that there is nothing to heal.
var ErrNoJournal = errors.New("nothing to heal")

// errBusy says that another drill is running, or has left something behind.
type errBusy struct{ error }

// openJournal begins a journal. It refuses when there is one: a cluster is broken by one drill at a time.
func openJournal(host Host, drill string, now time.Time) (*journal, error) {
	j := &journal{Version: journalVersion, Drill: drill, Runner: host.Self(), StartedAt: now.UTC()}
	if host.Dir() == "" {
		return j, nil
	}
	j.path = filepath.Join(host.Dir(), journalFile)
	raw, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, busy(host)
	}
	if err != nil {
		return nil, fmt.Errorf("the drill's journal: %w", err)
	}
	_, err = f.Write(raw)
	return j, errors.Join(err, f.Close())
}

func busy(host Host) error {
	old, err := readJournal(host)
	switch {
	case err != nil:
		return errBusy{err}
	case host.Alive(old.Runner):
		return errBusy{fmt.Errorf("drill %s runs on this cluster already, as process %d", old.Drill, old.Runner.PID)}
	}
	return errBusy{fmt.Errorf("drill %s was not healed, its runner (process %d) died: `cellvisor drill heal` undoes what it did", old.Drill, old.Runner.PID)}
}

// readJournal returns the journal that lies in the cluster's directory, ErrNoJournal if there is none.
func readJournal(host Host) (*journal, error) {
	path := filepath.Join(host.Dir(), journalFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoJournal
	}
	if err != nil {
		return nil, err
	}
	j := &journal{path: path}
	if err := json.Unmarshal(raw, j); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): look at `cellvisor server ls` and `cellvisor vm ls`, then remove it", path, err)
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("%s has version %d, this program knows %d", path, j.Version, journalVersion)
	}
	return j, nil
}

// save makes the journal durable against the death of the runner; the host's own death ends all that a local drill can have broken.
func (j *journal) save() error {
	if j.path == "" {
		return nil
	}
	raw, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(j.path+".new", append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(j.path+".new", j.path)
}

func (j *journal) close() error {
	if j.path == "" {
		return nil
	}
	return os.Remove(j.path)
}

// addVM notes a VM before it is created.
func (j *journal) addVM(name string) error {
	j.VMs = append(j.VMs, journalVM{Name: name})
	return j.save()
}

// setID notes which VM of that name is ours.
func (j *journal) setID(name string, id uint64) error {
	for i := range j.VMs {
		if j.VMs[i].Name == name {
			j.VMs[i].ID = id
		}
	}
	return j.save()
}

// dropVM forgets a VM whose creation was refused.
func (j *journal) dropVM(name string) error {
	j.VMs = slices.DeleteFunc(j.VMs, func(v journalVM) bool { return v.Name == name })
	return j.save()
}

func (j *journal) addFault(f fault) error {
	j.Faults = append(j.Faults, f)
	return j.save()
}

// dropFaults forgets the faults of one kind on a server.
func (j *journal) dropFaults(kind, server string) error {
	j.Faults = slices.DeleteFunc(j.Faults, func(f fault) bool { return f.Kind == kind && f.Server == server })
	return j.save()
}

// dropInjections forgets what servers do to themselves and their links, by server and peer.
func (j *journal) dropInjections(match func(server, peer string) bool) error {
	j.Faults = slices.DeleteFunc(j.Faults, func(f fault) bool { return f.Inject != nil && match(f.Server, f.Inject.Peer) })
	return j.save()
}

// addDrain notes names that are about to be taken out of use.
func (j *journal) addDrain(names []string) error {
	j.Drained = append(j.Drained, drained{Names: names})
	return j.save()
}

// setDrain notes which operation does it.
func (j *journal) setDrain(names []string, op uint64) error {
	for i := range j.Drained {
		if slices.Equal(j.Drained[i].Names, names) {
			j.Drained[i].Op = op
		}
	}
	return j.save()
}

// dropDrain forgets names that are in use again.
func (j *journal) dropDrain(names []string) error {
	for i := range j.Drained {
		j.Drained[i].Names = slices.DeleteFunc(slices.Clone(j.Drained[i].Names), func(n string) bool { return slices.Contains(names, n) })
	}
	j.Drained = slices.DeleteFunc(j.Drained, func(d drained) bool { return len(d.Names) == 0 })
	return j.save()
}

// brokenCells returns the cells with a fault, sorted. A witness counts as a cell of its own.
func (j *journal) brokenCells() []string {
	var out []string
	for _, f := range j.Faults {
		if f.Inject != nil && f.Inject.Far {
			continue
		}
		cell := f.Cell
		if cell == "" {
			cell = f.Server
		}
		if !slices.Contains(out, cell) {
			out = append(out, cell)
		}
	}
	slices.Sort(out)
	return out
}
