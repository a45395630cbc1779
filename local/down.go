package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// How long processes get to end by themselves.
const (
	servePatience  = 3 * time.Second // after SIGTERM: serve hands over and closes its log
	workerPatience = 1 * time.Second
	killPatience   = 30 * time.Second // after SIGKILL: only the kernel's own work is left
)

// Ended is a process that Down ended.
type Ended struct {
	Member
	Killed bool // did not end on SIGTERM in time
}

// Down ends every process of the cluster in dir: first the servers, all at once so that none acts on another's death, then their workers.
// Stopped processes are continued so that they can end. It looks again until there is none, and is no error when there was none. What the
// cluster knows stays in dir.
func Down(dir string) ([]Ended, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if _, err := update(dir, func(c *Cluster) error { c.Down, c.Live = true, false; return nil }); err != nil && !errors.Is(err, ErrNoCluster) {
		return nil, err
	}
	var all []Ended
	for range 5 {
		members, err := Find(dir)
		if err != nil {
			return all, err
		}
		if len(members) == 0 {
			return all, nil
		}
		all = append(all, end(members, KindServe, servePatience)...)
		if members, err = Find(dir); err != nil {
			return all, err
		}
		all = append(all, end(members, KindWorker, workerPatience)...)
	}
	members, err := Find(dir)
	if err == nil && len(members) > 0 {
		err = fmt.Errorf("process %d of the cluster in %s does not end, not even on SIGKILL: it waits inside the kernel", members[0].PID, dir)
	}
	return all, err
}

// end ends the members of one kind, together.
func end(members []Member, kind Kind, patience time.Duration) []Ended {
	type target struct {
		h *handle
		m Member
	}
	var targets []target
	for _, m := range members {
		if m.Kind != kind {
			continue
		}
		h, err := m.Process.open()
		if err != nil {
			continue
		}
		defer h.close()
		targets = append(targets, target{h, m})
	}
	for _, t := range targets {
		_ = t.h.signal(unix.SIGTERM)
		_ = t.h.signal(unix.SIGCONT)
	}
	var out []Ended
	deadline := time.Now().Add(patience)
	var stubborn []target
	for _, t := range targets {
		if t.h.wait(deadline) {
			out = append(out, Ended{Member: t.m})
		} else {
			_ = t.h.signal(unix.SIGKILL)
			stubborn = append(stubborn, t)
		}
	}
	deadline = time.Now().Add(killPatience)
	for _, t := range stubborn {
		if t.h.wait(deadline) {
			out = append(out, Ended{Member: t.m, Killed: true})
		}
	}
	return out
}

// Purge removes the files of a cluster that is down. It removes only what a cluster puts into its directory.
func Purge(dir string) error {
	if members, err := Find(dir); err != nil || len(members) > 0 {
		return errors.Join(err, fmt.Errorf("%d processes of the cluster in %s still run", len(members), dir))
	}
	c, err := Load(dir)
	if errors.Is(err, ErrNoCluster) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range c.Servers {
		for _, path := range []string{s.DataDir, s.Config, s.Log} {
			if filepath.Dir(path) != dir {
				return fmt.Errorf("%s names %s, which is not in it: not removed", filepath.Join(dir, clusterFile), path)
			}
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, tlsDir)); err != nil {
		return err
	}
	for _, name := range []string{"secret", clusterFile, lockFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
