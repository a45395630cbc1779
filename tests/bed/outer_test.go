package main

import (
	"strings"
	"testing"
)

// What is typed to wake the outer machine is in front of its lines when its terminal echoes; the marks among them are found all the same.
func TestMarksAreFoundBehindPokes(t *testing.T) {
	var got []string
	status := readLines(strings.NewReader("^@^@@case-begin One\r\n\x00\x00@case-end One 0 1 2\r\n@other\r\n^@\r\n\x00^@@bed-status 0"), func(line string) { got = append(got, line) })
	if want := "@case-begin One|@case-end One 0 1 2|@other|"; strings.Join(got, "|") != want || status != "0" {
		t.Errorf("%q, status %q", got, status)
	}
}
