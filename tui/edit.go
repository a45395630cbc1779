package tui

import (
	"unicode"

	tea "github.com/charmbracelet/bubbletea"
)

// editor is one line being typed, with the keys of readline.
type editor struct {
	text []rune
	// at is the position of the cursor, 0 to len(text).
	at int
	// room bounds the number of runes.
	room int
}

func (e *editor) value() string { return string(e.text) }

// set replaces the text and puts the cursor at its end.
func (e *editor) set(text string) {
	e.text = []rune(text)
	if len(e.text) > e.room {
		e.text = e.text[:e.room]
	}
	e.at = len(e.text)
}

func (e *editor) handle(k tea.KeyMsg) {
	switch k.String() {
	case "left", "ctrl+b":
		e.at = max(e.at-1, 0)
	case "right", "ctrl+f":
		e.at = min(e.at+1, len(e.text))
	case "home", "ctrl+a":
		e.at = 0
	case "end", "ctrl+e":
		e.at = len(e.text)
	case "backspace", "ctrl+h":
		e.cut(max(e.at-1, 0), e.at)
	case "delete", "ctrl+d":
		e.cut(e.at, min(e.at+1, len(e.text)))
	case "ctrl+w", "alt+backspace":
		e.cut(e.wordBefore(), e.at)
	case "ctrl+u":
		e.cut(0, e.at)
	case "ctrl+k":
		e.cut(e.at, len(e.text))
	default:
		if k.Type == tea.KeyRunes && !k.Alt || k.Type == tea.KeySpace {
			e.insert(k.Runes)
		}
	}
}

// insert puts in what was typed or pasted; a line break in a paste becomes a space.
func (e *editor) insert(runes []rune) {
	for _, r := range runes {
		if len(e.text) >= e.room {
			return
		}
		if unicode.IsSpace(r) {
			r = ' '
		}
		if !unicode.IsPrint(r) {
			continue
		}
		e.text = append(e.text, 0)
		copy(e.text[e.at+1:], e.text[e.at:])
		e.text[e.at] = r
		e.at++
	}
}

func (e *editor) cut(from, to int) {
	e.text = append(e.text[:from], e.text[to:]...)
	e.at = from
}

// wordBefore is where the word before the cursor begins.
func (e *editor) wordBefore() int {
	i := e.at
	for i > 0 && e.text[i-1] == ' ' {
		i--
	}
	for i > 0 && e.text[i-1] != ' ' {
		i--
	}
	return i
}
