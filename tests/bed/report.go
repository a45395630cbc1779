package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// report writes each case's output into a file of its own, and keeps the results.
type report struct {
	dir     string
	echo    bool
	file    *os.File
	results map[string]string
	failed  bool
}

func newReport(dir string, echo bool) *report {
	return &report{dir: dir, echo: echo, results: map[string]string{}}
}

func (r *report) line(text string) {
	if r.echo {
		fmt.Println(text)
	}
	if name, ok := strings.CutPrefix(text, markBegin); ok {
		r.begin(name)
		return
	}
	if rest, ok := strings.CutPrefix(text, markEnd); ok {
		r.end(strings.Fields(rest))
		return
	}
	if r.file != nil {
		fmt.Fprintln(r.file, text)
	}
}

func (r *report) begin(name string) {
	_ = os.MkdirAll(r.dir, 0o755)
	f, err := os.Create(filepath.Join(r.dir, filepath.Base(name)+".log"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		return
	}
	r.file = f
}

func (r *report) end(fields []string) {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	if len(fields) != 4 {
		return
	}
	begin, _ := strconv.ParseFloat(fields[2], 64)
	end, _ := strconv.ParseFloat(fields[3], 64)
	took := time.Duration((end - begin) * float64(time.Second)).Round(100 * time.Millisecond)
	result := "ok"
	if fields[1] != "0" {
		result, r.failed = "FAILED (status "+fields[1]+")", true
	}
	r.results[fields[0]] = result
	fmt.Printf("%-40s %-20s %s\n", fields[0], result, took)
}

// summary names what did not end well and where its report is.
func (r *report) summary(names []string) error {
	var errs []error
	for _, n := range names {
		if r.results[n] != "ok" {
			errs = append(errs, fmt.Errorf("%s: %s: see %s", n, defaultTo(r.results[n], "did not end"), filepath.Join(r.dir, n+".log")))
		}
	}
	return errors.Join(errs...)
}

func defaultTo(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}
