// Package setting is where tests that start programs begin: an environment that says nothing about the person, terminal or build machine they are
// started from, and a place for files that is quick and has a short name.
package setting

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// cleared are variables that programs under test listen to. A test that means one of them sets it.
var cleared = []string{
	"CI", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "TERM_PROGRAM",
	"TMUX", "TMUX_PANE", "TMUX_TMPDIR", "LANGUAGE", "POSIXLY_CORRECT", "MANPAGER", "PAGER", "MANWIDTH",
	"CELLVISOR_DIR", "CELLVISOR_ADDR", "CELLVISOR_CONTEXT", "CELLVISOR_CA", "CELLVISOR_CERT", "CELLVISOR_KEY",
	"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
	"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES",
	"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
}

// Plain makes the environment of this process, and of all that it starts, the same everywhere. Call it before any test.
func Plain() {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "LC_") {
			_ = os.Unsetenv(name)
		}
	}
	for _, name := range cleared {
		_ = os.Unsetenv(name)
	}
	_ = os.Setenv("LANG", "C.UTF-8")
	_ = os.Setenv("TERM", "xterm-256color")
	_ = os.Setenv("TMPDIR", Dir())
	unix.Umask(0o022)
}

// roomBytes is what tests may need at once.
const roomBytes = 2 << 30

// Dir is where clusters under test put their files: in memory where there is room, because a disk that others keep busy stalls an fsync for longer
// than a lease, and what depended on that server is lost then, as it should be. The name is short: a Unix socket's has 107 bytes at most.
func Dir() string {
	const memory, short = "/dev/shm", 32
	var fs unix.Statfs_t
	if unix.Access(memory, unix.W_OK) == nil && unix.Statfs(memory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) >= roomBytes {
		return memory
	}
	if dir := os.TempDir(); len(dir) <= short {
		return dir
	}
	return "/tmp"
}
