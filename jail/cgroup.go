package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Control groups bound what a worker may take of its host: memory and threads. Only version 2 is used, and only below a directory that was given to
// this server: one that its configuration names, or the group that systemd delegated to its service. CPU time is not bounded by them: the controller
// cpu shares between groups first, so that a page-serving thread of nice -20 would no longer run before another worker's vCPU, which the page
// protocol's speed rests on (ARCHITECTURE.md, One memory). Who runs when is the gang scheduler's.

// groupControllers are those that workers' groups need.
var groupControllers = []string{"memory", "pids"}

// serveGroup is the subgroup that systemd puts the service's main process into (DelegateSubgroup in its unit).
const serveGroup = "serve"

// Limits are what one worker may take.
type Limits struct {
	MemoryBytes uint64
	Threads     int
}

// Groups makes a control group for each worker below one directory.
type Groups struct {
	dir    string
	prefix string
}

// ErrNoGroups is wrapped by the reasons why workers cannot have control groups here.
var ErrNoGroups = errors.New("workers' memory and threads are not bounded by control groups")

func noGroups(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNoGroups, fmt.Sprintf(format, args...))
}

// OpenGroups prepares for the groups of a server's workers: below dir, or without one below what systemd delegated to this process. What an earlier
// run left without processes is removed.
func OpenGroups(dir, server string) (*Groups, error) {
	return openGroups("/proc/self", "/sys/fs/cgroup", dir, server)
}

func openGroups(self, mount, dir, server string) (*Groups, error) {
	if dir == "" {
		if err := groupsWhy(mount); err != nil {
			return nil, err
		}
		own, err := ownGroup(self)
		if err != nil {
			return nil, noGroups("%v", err)
		}
		dir = filepath.Join(mount, filepath.Dir(own))
		if filepath.Base(own) != serveGroup || !delegated(dir) {
			return nil, noGroups("systemd has delegated none to this process (the packaged unit does, with systemd 254 or newer); `cgroup` in the block security names a directory")
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, noGroups("%v", err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, noGroups("%s is no directory of control groups of version 2: %v", dir, err)
	}
	have := strings.Fields(string(raw))
	for _, c := range groupControllers {
		if !slices.Contains(have, c) {
			return nil, noGroups("%s lacks the controller %s: enable it in the groups above it (cgroup.subtree_control), or it is in use by version 1", dir, c)
		}
	}
	if err := set(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(groupControllers, " +")); err != nil {
		return nil, noGroups("the controllers of %s cannot be enabled: %v; it must have no processes of its own", dir, err)
	}
	g := &Groups{dir: dir, prefix: "cellvisor-" + server + "-"}
	g.sweep()
	return g, nil
}

// GroupsWhy says why a server that names no directory could have no groups on this machine, whatever starts it; nil if it could.
func GroupsWhy() error { return groupsWhy("/sys/fs/cgroup") }

func groupsWhy(mount string) error {
	raw, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return noGroups("%s is not of version 2", mount)
	}
	for _, c := range groupControllers {
		if !slices.Contains(strings.Fields(string(raw)), c) {
			return noGroups("the controller %s is not there, or in use by version 1", c)
		}
	}
	return nil
}

// set writes a file that is there.
func set(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// ownGroup is this process's place in the hierarchy of version 2.
func ownGroup(self string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(self, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("this process is in no group of version 2")
}

// delegated tells whether systemd has left a group to whoever is in it.
func delegated(dir string) bool {
	value := make([]byte, 8)
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// Dir is where the groups are.
func (g *Groups) Dir() string { return g.dir }

func (g *Groups) path(name string) string { return filepath.Join(g.dir, g.prefix+name) }

// Make makes a worker's group, or takes the one that is left of a former worker, and returns its directory to start the process in.
func (g *Groups) Make(name string, l Limits) (*os.File, error) {
	path := g.path(name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("the worker's control group: %w", err)
	}
	for file, value := range map[string]uint64{"memory.max": l.MemoryBytes, "pids.max": uint64(l.Threads)} { // no order matters
		if err := set(filepath.Join(path, file), strconv.FormatUint(value, 10)); err != nil {
			return nil, fmt.Errorf("the worker's control group: %w", err)
		}
	}
	d, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the worker's control group: %w", err)
	}
	return d, nil
}

// OutOfMemory tells whether the kernel has killed for a group's limit of memory.
func (g *Groups) OutOfMemory(name string) bool {
	raw, err := os.ReadFile(filepath.Join(g.path(name), "memory.events"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

// Remove removes the group of a worker that has ended.
func (g *Groups) Remove(name string) { _ = unix.Rmdir(g.path(name)) }

// sweep removes what has no processes; the kernel keeps the rest.
func (g *Groups) sweep() {
	entries, _ := os.ReadDir(g.dir)
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), g.prefix) {
			_ = unix.Rmdir(filepath.Join(g.dir, e.Name()))
		}
	}
}
