package jail

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hierarchy is a directory that looks like /sys/fs/cgroup of version 2, and a /proc/self of a process in one of its groups.
func hierarchy(t *testing.T, group string) (self, mount string) {
	t.Helper()
	self, mount = t.TempDir(), t.TempDir()
	put(t, filepath.Join(self, "cgroup"), "0::"+group+"\n")
	put(t, filepath.Join(mount, "cgroup.controllers"), "cpu memory pids\n")
	dir := filepath.Join(mount, group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(filepath.Dir(dir), "cgroup.controllers"), "cpu memory pids\n")
	put(t, filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), "")
	return self, mount
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err error, why string) {
	t.Helper()
	if !errors.Is(err, ErrNoGroups) || !strings.Contains(err.Error(), why) {
		t.Errorf("%v; want %q", err, why)
	}
}

func TestGroupsOfADelegatedService(t *testing.T) {
	self, mount := hierarchy(t, "/system.slice/cellvisor.service/serve")
	service := filepath.Join(mount, "system.slice/cellvisor.service")
	_, err := openGroups(self, mount, "", "a-1")
	refused(t, err, "systemd has delegated none")
	if err := unix.Setxattr(service, "user.delegate", []byte("1"), 0); err != nil {
		t.Skipf("this file system keeps no attributes: %v", err)
	}
	stale := filepath.Join(service, "cellvisor-a-1-7-3")
	if err := os.Mkdir(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	g, err := openGroups(self, mount, "", "a-1")
	if err != nil {
		t.Fatal(err)
	}
	if g.Dir() != service {
		t.Errorf("groups are in %s", g.Dir())
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what an earlier run left is still there")
	}
	if raw, _ := os.ReadFile(filepath.Join(service, "cgroup.subtree_control")); string(raw) != "+memory +pids" {
		t.Errorf("enabled: %q", raw)
	}
	elsewhere, mount2 := hierarchy(t, "/user.slice/session-3.scope/shell")
	if err := unix.Setxattr(filepath.Join(mount2, "user.slice/session-3.scope"), "user.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	_, err = openGroups(elsewhere, mount2, "", "a-1")
	refused(t, err, "systemd has delegated none")
}

func TestGroupsInANamedDirectory(t *testing.T) {
	dir := t.TempDir()
	_, err := openGroups("", "", dir, "a-1")
	refused(t, err, "no directory of control groups")
	put(t, filepath.Join(dir, "cgroup.controllers"), "hugetlb pids\n")
	_, err = openGroups("", "", dir, "a-1")
	refused(t, err, "lacks the controller memory")
	put(t, filepath.Join(dir, "cgroup.controllers"), "pids memory\n")
	_, err = openGroups("", "", dir, "a-1") // a file of that name is not made where there is none
	refused(t, err, "cannot be enabled")
	put(t, filepath.Join(dir, "cgroup.subtree_control"), "")
	g, err := openGroups("", "", dir, "a-1")
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(dir, "cellvisor-a-1-7-3")
	if _, err := g.Make("7-3", Limits{MemoryBytes: 1 << 30, Threads: 99}); err == nil {
		t.Error("a limit that cannot be written was passed over")
	}
	put(t, filepath.Join(group, "memory.max"), "max")
	put(t, filepath.Join(group, "pids.max"), "max")
	d, err := g.Make("7-3", Limits{MemoryBytes: 1 << 30, Threads: 99})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for file, want := range map[string]string{"memory.max": "1073741824", "pids.max": "99"} {
		if raw, _ := os.ReadFile(filepath.Join(group, file)); string(raw) != want {
			t.Errorf("%s is %q, not %s", file, raw, want)
		}
	}
	if g.OutOfMemory("7-3") {
		t.Error("out of memory without a word of it")
	}
	put(t, filepath.Join(group, "memory.events"), "low 0\noom 2\noom_kill 1\n")
	if !g.OutOfMemory("7-3") {
		t.Error("the kernel's kill goes unnoticed")
	}
	_, err = openGroups("", t.TempDir(), "", "a-1")
	refused(t, err, "not of version 2")
}
