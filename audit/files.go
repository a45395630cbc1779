package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// How a log's space is shared: so many files, none smaller than that.
const (
	fileShare    = 8
	minFileBytes = 64 << 10

	// DefaultMostBytes is the space that a log may take unless its configuration says otherwise: some hundred thousand acts.
	DefaultMostBytes = 256 << 20
)

var olderPattern = regexp.MustCompile(`-[0-9]{20}$`)

// olderFiles lists the files before the one at path, the oldest first.
func olderFiles(path string) []string {
	found, _ := filepath.Glob(path + "-*")
	found = slices.DeleteFunc(found, func(f string) bool { return !olderPattern.MatchString(f) })
	slices.Sort(found)
	return found
}

// openAll reads all files of a log as one.
func openAll(path string) (io.ReadCloser, error) {
	all := &allFiles{}
	older := olderFiles(path)
	for _, name := range append(older, path) {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && name == path && len(older) > 0 { // a crash between the end of one file and the next one
			break
		}
		if err != nil {
			all.Close()
			return nil, err
		}
		all.files = append(all.files, f)
	}
	var readers []io.Reader
	for _, f := range all.files {
		readers = append(readers, f)
	}
	all.Reader = io.MultiReader(readers...)
	return all, nil
}

type allFiles struct {
	io.Reader
	files []*os.File
}

// Close implements io.Closer.
func (a *allFiles) Close() error {
	var errs []error
	for _, f := range a.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Read opens the log as it is now, all files as one, and returns its head: what is read holds at least that.
func (l *Log) Read() (io.ReadCloser, Head, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := openAll(l.path)
	return r, l.head, err
}

// startAt takes in where a log begins whose older files were removed: its first entry tells.
func (r *Report) startAt(text []byte) {
	var e Entry
	if json.Unmarshal(text, &e) == nil && e.Kind == GoesOn && e.Head != nil {
		r.before = *e.Head
		r.Head = *e.Head
	}
}

// makeRoom begins a new file if the next entry does not fit in this one. It requires mu.
func (l *Log) makeRoom(more int64, at time.Time) error {
	size, err := l.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size > 0 && size+more > l.most {
		if err := l.nextFile(); err != nil {
			return err
		}
		size = 0
	}
	if size > 0 || l.head.Seq == 0 {
		return nil
	}
	before := l.head
	_, err = l.append(Entry{At: at, Kind: GoesOn, Head: &before})
	return err
}

// nextFile puts the present file aside, removes the oldest, and begins an empty one. It requires mu.
func (l *Log) nextFile() error {
	first, err := firstSeq(l.path)
	if err == nil {
		err = os.Rename(l.path, fmt.Sprintf("%s-%020d", l.path, first))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // not there: it was put aside before, and no new one could be made then
		return err
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.file.Close()
	l.file = f
	for older := olderFiles(l.path); len(older) >= fileShare; older = older[1:] {
		if err := os.Remove(older[0]); err != nil {
			return err
		}
	}
	return nil
}

// firstSeq is the number of a file's first entry.
func firstSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var hash string
	if _, err := fmt.Fscan(f, &hash); err != nil {
		return 0, fmt.Errorf("first entry of %s: %w", path, err)
	}
	var e Entry
	if err := json.NewDecoder(f).Decode(&e); err != nil {
		return 0, fmt.Errorf("first entry of %s: %w", path, err)
	}
	return e.Seq, nil
}

// writeWhole writes a line to disk, or nothing: half a line would break the chain.
func writeWhole(f *os.File, line []byte) error {
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err = f.Write(line); err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Truncate(at)
	}
	return err
}
