package table

import (
	"strings"
)

// Filter is what the user typed after '/': words separated by spaces, all of which a row must satisfy. A word is found anywhere in the
// row, whatever its case; title:word only in that column; !word must not be found.
type Filter struct {
	text  string
	words []word
}

type word struct {
	text, column string
	not          bool
}

// ParseFilter never fails: every text is a filter.
func ParseFilter(text string) Filter {
	f := Filter{text: strings.TrimSpace(text)}
	for _, field := range strings.Fields(strings.ToLower(text)) {
		w := word{text: field}
		if rest, found := strings.CutPrefix(w.text, "!"); found {
			w.not, w.text = true, rest
		}
		if column, rest, found := strings.Cut(w.text, ":"); found && column != "" {
			w.column, w.text = column, rest
		}
		if w.text != "" {
			f.words = append(f.words, w)
		}
	}
	return f
}

// String returns the text as it was typed, without outer spaces.
func (f Filter) String() string { return f.text }

// Active says whether the filter can reject anything.
func (f Filter) Active() bool { return len(f.words) > 0 }

// Match says whether the row passes.
func (f Filter) Match(columns []Column, r Row) bool {
	for _, w := range f.words {
		if w.in(columns, r) == w.not {
			return false
		}
	}
	return true
}

func (w word) in(columns []Column, r Row) bool {
	known := false
	if w.column != "" {
		for i, c := range columns {
			if i < len(r.Cells) && strings.EqualFold(c.Title, w.column) {
				known = true
				if contains(r.Cells[i].Text, w.text) {
					return true
				}
			}
		}
		if known {
			return false
		}
	}
	// A word with a colon that names no column ("a-1:7001") is meant as it stands.
	text := w.text
	if w.column != "" {
		text = w.column + ":" + w.text
	}
	for _, c := range r.Cells {
		if contains(c.Text, text) {
			return true
		}
	}
	return contains(r.Search, text)
}

func contains(s, lower string) bool { return strings.Contains(strings.ToLower(s), lower) }
