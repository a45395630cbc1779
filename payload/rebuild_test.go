package payload_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestImagesAreWhatTheSourcesBuild rebuilds all images and compares them with the committed ones. Compilers differ, so it skips where the
// compiler is not the one that built those.
func TestImagesAreWhatTheSourcesBuild(t *testing.T) {
	for _, tool := range []string{"gcc", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: no %s here", tool)
		}
	}
	want, err := os.ReadFile("images/BUILT_WITH")
	if err != nil {
		t.Fatal(err)
	}
	version, err := exec.Command("gcc", "--version").Output()
	if err != nil {
		t.Skipf("skipped: gcc --version: %v", err)
	}
	have, _, _ := strings.Cut(string(version), "\n")
	if have != strings.TrimSpace(string(want)) {
		t.Skipf("skipped: the images were built with %q, here is %q", strings.TrimSpace(string(want)), have)
	}
	out := t.TempDir()
	if text, err := exec.Command("make", "-s", "OUT="+out, "all").CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, text)
	}
	for _, dir := range []string{"images", "bad/images"} {
		built := list(t, filepath.Join(out, dir))
		if committed := list(t, dir); strings.Join(committed, " ") != strings.Join(built, " ") {
			t.Errorf("%s holds %v, the sources build %v", dir, committed, built)
		}
		for _, name := range built {
			a, errA := os.ReadFile(filepath.Join(out, dir, name))
			b, errB := os.ReadFile(filepath.Join(dir, name))
			if errA != nil || errB != nil || !bytes.Equal(a, b) {
				t.Errorf("%s/%s is not what its source builds: run make -C payload", dir, name)
			}
		}
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.elf"))
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	return names
}
