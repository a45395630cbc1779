package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// shellBlocks joins the shell blocks of a guide.
func shellBlocks(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	script := "set -eu\n"
	for rest := string(text); ; {
		_, after, ok := strings.Cut(rest, "```sh\n")
		if !ok {
			return script
		}
		var block string
		block, rest, _ = strings.Cut(after, "```")
		script += block
	}
}

// The guides work by copy and paste: what stands in their shell blocks runs, and stops at the first error.
func TestGuides(t *testing.T) {
	if why := kvmMissing(); why != "" && os.Getenv("REQUIRE_KVM") != "1" {
		t.Skip(why)
	}
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed")
	}
	for path, wants := range map[string][]string{
		"../docs/quickstart.md":  {"numbers, no gap", "vm.recovered", "The cluster is live"},
		"../docs/maintenance.md": {"drain cell b", "yes", "true"},
	} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, env := drillEnv(t)
			cmd := exec.Command("sh", "-c", shellBlocks(t, path))
			cmd.Dir, cmd.Env = t.TempDir(), env
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range wants {
				if !strings.Contains(string(out), want) {
					t.Errorf("the output lacks %q:\n%s", want, out)
				}
			}
		})
	}
}

// The Debian package unpacks to a program that runs, its pages, completions and unit.
func TestDebianPackage(t *testing.T) {
	for _, tool := range []string{"dpkg-deb", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dist := filepath.Join(t.TempDir(), "dist")
	// The program of these tests is packed as it is.
	cmd := exec.Command("make", "-C", root, "deb", "DIST="+dist, "BIN="+program, "BUILD=")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make deb: %v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dist, "cellvisor_*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("%v %v", debs, err)
	}
	into := t.TempDir()
	if out, err := exec.Command("dpkg-deb", "-x", debs[0], into).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(filepath.Join(into, "usr/bin/cellvisor"), "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "cellvisor ") {
		t.Errorf("version: %v %s", err, out)
	}
	for _, name := range []string{"lib/systemd/system/cellvisor.service", "usr/share/man/man8/cellvisor-cell-drain.8", "usr/share/bash-completion/completions/cellvisor",
		"usr/share/zsh/site-functions/_cellvisor", "usr/share/doc/cellvisor/quickstart.md", "etc/cellvisor"} {
		if _, err := os.Stat(filepath.Join(into, name)); err != nil {
			t.Error(err)
		}
	}
	unit, err := os.ReadFile(filepath.Join(into, "lib/systemd/system/cellvisor.service"))
	if err != nil || !strings.Contains(string(unit), "ExecStart=/usr/bin/cellvisor serve") || !strings.Contains(string(unit), "WatchdogSec=") {
		t.Errorf("unit: %v\n%s", err, unit)
	}
}
