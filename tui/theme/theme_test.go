package theme

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"
)

func TestClean(t *testing.T) {
	u, a := New(false, false), New(true, false)
	for _, c := range []struct{ in, unicode, ascii string }{
		{"plain", "plain", "plain"},
		{"\x1b[31mred", "·[31mred", "-[31mred"},
		{"a\tb\nc", "a b c", "a b c"},
		{"bell\x07\x7f\x00", "bell···", "bell---"},
		{"\xff\xfe", "··", "--"},
		{"grün 界", "grün 界", "gr?n ?"},
		// Right-to-left override, zero-width space, a combining accent, C1 control sequence introducer.
		{"a\u202eb\u200bc\u0301\u009b2J", "a·b·c··2J", "a-b-c--2J"},
	} {
		if got := u.Clean(c.in); got != c.unicode {
			t.Errorf("%q: %q, want %q", c.in, got, c.unicode)
		}
		if got := a.Clean(c.in); got != c.ascii {
			t.Errorf("ascii %q: %q, want %q", c.in, got, c.ascii)
		}
	}
}

// TestFitIsExact: any bytes, cleaned and fitted, take exactly the cells asked for, as a terminal counts them.
func TestFitIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		th := New(rapid.Bool().Draw(t, "ascii"), false)
		raw := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		width := rapid.IntRange(0, 40).Draw(t, "width")
		text := th.Clean(raw)
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) {
			t.Fatalf("%q is not clean", text)
		}
		for name, got := range map[string]string{"Fit": th.Fit(text, width), "FitRight": th.FitRight(text, width)} {
			if ansi.StringWidth(got) != width {
				t.Fatalf("%s(%q, %d) is %d wide: %q", name, text, width, ansi.StringWidth(got), got)
			}
		}
		for _, line := range Wrap(text, width) {
			if Width(line) > width {
				t.Fatalf("%q is wider than %d", line, width)
			}
		}
		if got, want := Width(Skip(text, width)), max(Width(text)-width, 0); got != want {
			t.Fatalf("Skip(%q, %d) is %d wide, want %d", text, width, got, want)
		}
	})
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"one two three", 7, "one two|three"},
		{"one two three", 8, "one two|three"},
		{"unbreakable", 4, "unbr|eaka|ble"},
		{"", 5, ""},
		{"界界界", 5, "界界|界"},
	} {
		if got := strings.Join(Wrap(c.text, c.width), "|"); got != c.want {
			t.Errorf("%q at %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

func TestGauge(t *testing.T) {
	th := New(true, false)
	for _, c := range []struct {
		used, total uint64
		want        string
	}{{0, 0, ""}, {0, 8, "........"}, {1, 1000, "#......."}, {4, 8, "####...."}, {999, 1000, "#######."}, {8, 8, "########"}, {20, 8, "########"}} {
		if got := th.Gauge(c.used, c.total, 8); got != c.want {
			t.Errorf("%d of %d: %q, want %q", c.used, c.total, got, c.want)
		}
	}
}

func TestASCIIGlyphsAreASCII(t *testing.T) {
	th := New(true, false)
	for _, g := range []string{th.Live, th.Dead, th.Joining, th.Degraded, th.Starting, th.Running, th.Stopped, th.Done, th.Lost, th.Fail, th.Cursor,
		th.Ellipsis, th.Full, th.Empty, th.Rule, th.Wall, th.Alarm, th.Crumb, th.Dot, th.Unknown, th.Up, th.Down, th.Prompt} {
		if len(g) != 1 || g[0] > 0x7e {
			t.Errorf("%q", g)
		}
	}
}

func TestPaint(t *testing.T) {
	if got := New(false, false).Paint(Bad, "x"); got != "x" {
		t.Errorf("without colour %q", got)
	}
	c := New(false, true)
	for role := Plain; role < roles; role++ {
		if got := ansi.Strip(c.Paint(role, "word")); got != "word" {
			t.Errorf("role %d: %q", role, got)
		}
		if role > Plain && c.Paint(role, "word") == "word" {
			t.Errorf("role %d looks like plain text", role)
		}
	}
}
