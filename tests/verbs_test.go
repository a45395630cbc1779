package tests

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every verb of the command line is given by a script. The reference in docs/cli.md, which another test keeps fresh, lists the verbs.
func TestEveryVerbHasAScript(t *testing.T) {
	reference, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(reference)) {
		if verb, is := strings.CutPrefix(strings.TrimSpace(line), "## cellvisor "); is {
			verbs = append(verbs, verb)
		}
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var given strings.Builder
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "-- ") {
				break // files follow
			}
			if !strings.HasPrefix(line, "#") {
				given.WriteString(line)
			}
		}
	}
	nouns := 0
	for i, verb := range verbs {
		if i+1 < len(verbs) && strings.HasPrefix(verbs[i+1], verb+" ") {
			nouns++ // it only leads verbs
			continue
		}
		if !regexp.MustCompile(`(?m)cellvisor ` + regexp.QuoteMeta(verb) + `([\s)']|$)`).MatchString(given.String()) {
			t.Errorf("no script in testdata/script gives `cellvisor %s`", verb)
		}
	}
	if len(verbs)-nouns < 60 {
		t.Errorf("the reference lists only %d verbs: %q", len(verbs)-nouns, verbs)
	}
}
