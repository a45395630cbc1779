package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// docs/cli.md is made from the commands; when they change it must be made anew.
func TestReferenceIsFresh(t *testing.T) {
	var b strings.Builder
	writeReference(&b, (&app{}).root())
	have, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Error("docs/cli.md is stale: make man")
	}
}

func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if code, _, errs := runTest("manual", "--man", dir); code != 0 {
		t.Fatal(errs)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"} {
			if !strings.Contains(string(text), section) {
				t.Errorf("%s has no %s", filepath.Base(page), section)
			}
		}
	}
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("man is not installed")
	}
	out, err := exec.Command(man, "--warnings=w", "-P", "cat", "-l", filepath.Join(dir, "cellvisor-cell-drain.8")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "max-parallel") || strings.Contains(string(out), "warning") {
		t.Errorf("man: %v\n%s", err, out)
	}
}
