package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
)

// Every command that an operator sees has a line about it, an example that begins with its own name, and a check of its arguments.
func TestCommandsAreDocumented(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.CommandPath(), c.Short)
		}
		if c.Args == nil {
			t.Errorf("%s does not check its arguments", c.CommandPath())
		}
		if !c.HasSubCommands() && !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: its examples do not show it:\n%s", c.CommandPath(), c.Example)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

func runTest(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"vm"}, {"vm", "nonsense"}, {"status", "--nonsense"}, {"status", "-o", "yaml"}, {"vm", "show"}, {"vm", "show", "a", "b"},
		{"vm", "run", "x"}, {"sim", "--seeds", "x"}, {"sim", "--seeds", "2..1"}, {"sim", "-j", "-1"}, {"bench", "fault", "--pages", "1"}, {"up", "--cells", "99"},
	} {
		if code, _, errs := runTest(args...); code != api.ExitUsage {
			t.Errorf("%v: exit code %d, want %d: %s", args, code, api.ExitUsage, errs)
		}
	}
}

func TestFlagErrors(t *testing.T) {
	for _, c := range []struct{ flag, value, want string }{
		{"--vcpus", "abc", "no whole number"}, {"--vcpus", "-1", "below 0"}, {"--vcpus", "99999999999", "too large"}, {"--reboot-on-crash", "maybe", "true or false"},
	} {
		code, _, errs := runTest("vm", "run", "x", "--payload", "hello", c.flag+"="+c.value)
		if code != api.ExitUsage || !strings.Contains(errs, c.want) || !strings.Contains(errs, c.value) || strings.Contains(errs, "strconv") {
			t.Errorf("%s=%s: %d, %s", c.flag, c.value, code, errs)
		}
	}
}

func TestVersion(t *testing.T) {
	if code, out, _ := runTest("version"); code != 0 || !strings.HasPrefix(out, "cellvisor ") {
		t.Errorf("%d %q", code, out)
	}
	if code, out, _ := runTest("version", "-o", "json"); code != 0 || !strings.Contains(out, `"version": "`) {
		t.Errorf("%d %q", code, out)
	}
}

func TestSeeds(t *testing.T) {
	for text, want := range map[string][2]uint64{"1..10": {1, 10}, "7": {7, 7}, "0..0": {0, 0}} {
		from, to, err := parseSeeds(text)
		if err != nil || from != want[0] || to != want[1] {
			t.Errorf("%q: %d..%d, %v", text, from, to, err)
		}
	}
	for _, text := range []string{"", "..", "1..", "..2", "5..1", "-1..2", "a..b", "1..18446744073709551615", "1...2"} {
		if _, _, err := parseSeeds(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 512: "512B", 4096: "4KiB", 64 << 20: "64MiB", 1536 << 20: "1.5GiB", 5 << 30: "5GiB"} {
		if got := human(n); got != want {
			t.Errorf("human(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	a.table([][]string{{"VM", "STATE", "NOTE"}, {"größe", "running", ""}, {"b", "lost", "cell b"}})
	want := "VM     STATE    NOTE\ngröße  running\nb      lost     cell b\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
