package drill

import (
	"strings"
	"testing"

	"github.com/cellvisor/cellvisor/drills"
)

// Whatever a file holds, reading and checking it ends, in bounded time and memory, with an answer.
func FuzzLoad(f *testing.F) {
	for _, name := range drills.Names() {
		src, err := drills.Read(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Add([]byte("x = [0] * 9\nx *= 3\ndef drill():\n    expect(lambda: 2 * 3 == 6)"))
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Load("fuzz.star", src)
		if (p == nil) == (err == nil) && err == nil {
			t.Fatal("neither a program nor an error")
		}
		for _, problem := range Lint("fuzz.star", src) {
			if problem == "" {
				t.Error("a problem without words")
			}
		}
	})
}

// A drill that loops for ever or fills memory is ended and told why, wherever it does so.
func TestMaliciousDrills(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"endless loop":      {"while True:\n    pass", "does it loop for ever?"},
		"list that doubles": {"l = [1]\nwhile True:\n    l = l + l", "at most 64 are allowed"},
		"text that doubles": {"s = 'x'\nwhile True:\n    s += s", "at most 64 are allowed"},
		"number that grows": {"n = 3\nwhile True:\n    n = n * n", "a product of"},
		"repeated text":     {"s = 'x' * 1000000000", "too many"},
		"repeated list":     {"s = [0] * 1000000000", "too many"},
		"repeated in place": {"s = [0]\ns *= 1000000000", "too many"},
		"long range":        {"s = list(range(1000000000))", "at most 1048576 are allowed"},
		"recursion":         {"def f():\n    f()\nf()", "called recursively"},
		"deep nesting":      {"x = " + strings.Repeat("[", 20000) + strings.Repeat("]", 20000), ""},
		"large file":        {strings.Repeat("#", maxProgramBytes+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			in := func(text string) string { return "    " + strings.ReplaceAll(text, "\n", "\n    ") }
			body := c.body
			if !strings.Contains(body, "def ") && len(body) < 1000 {
				body = "def f():\n" + in(body) + "\nf()"
			}
			_, err := Load("bad.star", []byte(body+"\ndef drill():\n    pass\n"))
			if c.want != "" && (err == nil || !anyOf(err.Error(), c.want)) {
				t.Errorf("at the top level: %v", err)
			}
			if name == "recursion" || name == "deep nesting" || name == "large file" {
				return
			}
			rep := runOn(t, newFake(t), "def drill():\n"+in(c.body)+"\n")
			if rep.Verdict != Broken || !anyOf(rep.Why, c.want) || !rep.Healing.OK {
				t.Errorf("within drill(): %s: %s", rep.Verdict, rep.Why)
			}
		})
	}
}

// What greedy drills leave behind gives the next ones nothing: a process may run many.
func TestGreedyDrillsInARow(t *testing.T) {
	for range 8 {
		_, err := Load("greedy.star", []byte("def f():\n    s = 'x'\n    while True:\n        s += s\nf()\ndef drill():\n    pass\n"))
		if err == nil {
			t.Fatal("a text that doubles for ever was loaded")
		}
		if n := heapBytes(); n > 16*maxHeapBytes {
			t.Fatalf("the heap has grown to %d MiB: %v", n>>20, err)
		}
	}
}

func anyOf(text, alternatives string) bool {
	for _, a := range strings.Split(alternatives, "|") {
		if strings.Contains(text, a) {
			return true
		}
	}
	return false
}
