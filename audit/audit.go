// Package audit keeps the log of what operators did: who, from where, what, with which arguments, when, and how it ended. It is floor 4: it
// writes a file, and decides nothing.
//
// Each server has a log of its own, of what was asked of it. An entry is one line:
//
//	hash of the line before and of this entry (64 hex digits) | space | entry (JSON)
//
// So whoever changes, removes or inserts a line must change all hashes after it. Beside the log lies its head: number and hash of the last entry. A
// log that is shorter than its head was cut off. Whoever can rewrite both is found out by other servers: each tells the others its head after an
// act, and they note it in their own logs as witnesses. To remove an act unseen, one must rewrite the logs of all servers.
//
// An act is two entries: asked, before it begins, and done, with its result. If the first cannot be written, the act does not take place.
//
// A log that has grown to its share of the space that it may take goes on in a new file: the old one is kept beside it under the number of its first
// entry, and the new one begins with an entry that tells the end of the old one, so that the chain runs through all files. The oldest are removed
// when the space is used up; what is left verifies from there on.
//
// Invariants: what Append returned without an error is on disk; entries are numbered from 1 without a gap.
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind says what an entry tells.
type Kind string

// Kinds of entries.
const (
	Started Kind = "started" // the server began to write; Result says so if the log before it was broken
	Asked   Kind = "asked"   // somebody asked for an act
	Done    Kind = "done"    // it has ended
	Refused Kind = "refused" // somebody asked for what they may not do
	Witness Kind = "witness" // another server told the head of its log
	GoesOn  Kind = "goes-on" // the log goes on in a new file; Head is its end in the file before
)

// Entry is one entry of a log.
type Entry struct {
	Seq    uint64          `json:"seq"`
	At     time.Time       `json:"at"`
	Server string          `json:"server"`
	Kind   Kind            `json:"kind"`
	Of     uint64          `json:"of,omitempty"`     // of Done: the entry with what was asked
	Who    string          `json:"who,omitempty"`    // "operator alice", "user root (uid 0)"
	Via    string          `json:"via,omitempty"`    // the server that passed it on
	From   string          `json:"from,omitempty"`   // address
	What   string          `json:"what,omitempty"`   // the API's call
	Args   json.RawMessage `json:"args,omitempty"`   // of the call
	Result string          `json:"result,omitempty"` // "ok", or why not
	Head   *Head           `json:"head,omitempty"`   // of Witness and GoesOn
}

// Head is the end of a log.
type Head struct {
	Server string `json:"server"`
	Seq    uint64 `json:"seq"`
	Hash   string `json:"hash"`
}

// Limits of a line, and of the arguments in it.
const (
	maxLineBytes = 64 << 10
	MaxArgsBytes = 8 << 10
)

// Log is a server's log, open for writing.
type Log struct {
	path   string
	server string
	most   int64 // bytes of one file

	mu   sync.Mutex
	file *os.File        // protected by mu; nil once closed
	head Head            // protected by mu
	seen map[string]Head // protected by mu; the last witnessed head of each other server
}

// HeadFile is the file with the head of the log at path.
func HeadFile(path string) string { return path + ".head" }

// Open continues the log at path, or begins one. One that does not verify is put aside, and the new one says so in its first entry, as does
// the error, which wraps ErrBroken and comes with a log that works. The log takes about mostBytes at most.
func Open(path, server string, now time.Time, mostBytes int64) (*Log, error) {
	l := &Log{path: path, server: server, most: max(mostBytes/fileShare, minFileBytes), head: Head{Server: server}, seen: map[string]Head{}}
	if err := dropTorn(path); err != nil {
		return nil, err
	}
	report, broken := VerifyFile(path)
	if errors.Is(broken, os.ErrNotExist) {
		broken = nil
		if _, err := os.Stat(HeadFile(path)); err == nil {
			broken = fmt.Errorf("%w: the log is gone, its head is there", ErrBroken)
		}
	}
	first := Entry{At: now, Kind: Started, Result: "ok"}
	if broken != nil {
		if !errors.Is(broken, ErrBroken) {
			return nil, broken
		}
		suffix := fmt.Sprintf(".broken-%d", now.Unix())
		for _, file := range append(olderFiles(path), path) {
			if err := os.Rename(file, file+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		first.Result = fmt.Sprintf("the log before this did not verify, it is kept in %s: %v", filepath.Base(path)+suffix, broken)
	} else if report != nil {
		l.head.Seq, l.head.Hash = report.Head.Seq, report.Head.Hash
		for _, e := range report.Entries {
			if e.Kind == Witness && e.Head != nil {
				l.seen[e.Head.Server] = *e.Head
			}
		}
	}
	var err error
	if l.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	if _, err := l.Append(first); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, broken
}

// dropTorn removes a last line that a crash cut short: what Append had not returned from never counted.
func dropTorn(path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && (len(raw) == 0 || raw[len(raw)-1] == '\n') {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Truncate(path, int64(bytes.LastIndexByte(raw, '\n')+1))
}

// Append writes an entry, numbered and chained, to disk, and returns its number.
func (l *Log) Append(e Entry) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(e)
}

// append requires mu.
func (l *Log) append(e Entry) (uint64, error) {
	if l.file == nil {
		return 0, errors.New("audit: the log is closed")
	}
	e.Seq, e.Server = l.head.Seq+1, l.server
	e.At = e.At.UTC()
	if len(e.Args) > MaxArgsBytes {
		e.Args, _ = json.Marshal(fmt.Sprintf("%d bytes, too long to keep", len(e.Args)))
	}
	const textLimit = 2 << 10
	e.Result = e.Result[:min(len(e.Result), textLimit)]
	text, err := json.Marshal(e)
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	if e.Kind != GoesOn {
		if err := l.makeRoom(int64(len(text)), e.At); err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		if e.Seq != l.head.Seq+1 { // a new file has begun
			e.Seq = l.head.Seq + 1
			if text, err = json.Marshal(e); err != nil {
				return 0, fmt.Errorf("audit: %w", err)
			}
		}
	}
	hash := chain(l.head.Hash, text)
	line := append(append([]byte(hash+" "), text...), '\n')
	if err := writeWhole(l.file, line); err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	l.head.Seq, l.head.Hash = e.Seq, hash
	if e.Kind == Witness {
		l.seen[e.Head.Server] = *e.Head
	}
	return e.Seq, l.writeHead()
}

// writeHead requires mu.
func (l *Log) writeHead() error {
	path := HeadFile(l.path)
	if err := os.WriteFile(path+".new", []byte(fmt.Sprintf("%d %s\n", l.head.Seq, l.head.Hash)), 0o600); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Head returns the end of the log.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Note witnesses another server's head. One that is not newer than the last is nothing new.
func (l *Log) Note(h Head, now time.Time) error {
	if h.Server == "" || h.Server == l.server || h.Seq == 0 || len(h.Hash) != 2*sha256.Size {
		return fmt.Errorf("audit: that is no head of another server's log: %+v", h)
	}
	l.mu.Lock()
	known := l.seen[h.Server]
	l.mu.Unlock()
	if known == h {
		return nil
	}
	_, err := l.Append(Entry{At: now, Kind: Witness, Head: &h})
	return err
}

// Close ends the writing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.file
	l.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

func chain(before string, text []byte) string {
	h := sha256.New()
	h.Write([]byte("cellvisor audit 1\n" + before + "\n"))
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}

// ErrBroken is wrapped by errors that say where a log is not what was written.
var ErrBroken = errors.New("the audit log does not verify")

func broken(line int, format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %s", ErrBroken, line, fmt.Sprintf(format, args...))
}

// Report is a log that verifies.
type Report struct {
	Entries []Entry
	Head    Head
	before  Head     // the end of what was before the first entry
	hashes  []string // by number - before.Seq - 1
}

// First is the number of the first entry: later than 1 if older files were removed to save space.
func (r *Report) First() uint64 { return r.before.Seq + 1 }

// VerifyFile reads the log at path, older files included, and checks it, and its head if there is one.
func VerifyFile(path string) (*Report, error) {
	f, err := openAll(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var head *Head
	if raw, err := os.ReadFile(HeadFile(path)); err == nil {
		seq, hash, _ := strings.Cut(strings.TrimSpace(string(raw)), " ")
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: %s is not a head", ErrBroken, HeadFile(path))
		}
		head = &Head{Seq: n, Hash: hash}
	}
	return Verify(f, head)
}

// Verify reads a log and checks that every entry is as it was written and none is missing: in the chain, and up to the head, if one is given.
func Verify(r io.Reader, head *Head) (*Report, error) {
	out := &Report{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLineBytes)
	for n := 1; lines.Scan(); n++ {
		hash, text, ok := strings.Cut(lines.Text(), " ")
		if n == 1 && ok {
			out.startAt([]byte(text))
		}
		if !ok || hash != chain(out.Head.Hash, []byte(text)) {
			return nil, broken(n, "it was changed, or a line before it was changed, removed or inserted")
		}
		var e Entry
		if err := json.Unmarshal([]byte(text), &e); err != nil || e.Seq != out.Head.Seq+1 || n > 1 && e.Server != out.Head.Server {
			return nil, broken(n, "it is not entry %d of this log", out.Head.Seq+1)
		}
		out.Entries, out.hashes = append(out.Entries, e), append(out.hashes, hash)
		out.Head = Head{Server: e.Server, Seq: e.Seq, Hash: hash}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if head == nil {
		return out, nil
	}
	if err := out.Holds(*head); err != nil {
		return nil, err
	}
	return out, nil
}

// Holds tells whether a log contains the entry that somebody has seen as its head.
func (r *Report) Holds(h Head) error {
	if h.Seq > r.Head.Seq {
		return fmt.Errorf("%w: it was cut off: it has %d entries, it once had %d", ErrBroken, r.Head.Seq, h.Seq)
	}
	if h.Seq < r.before.Seq {
		return nil // it was removed to save space
	}
	if h.Seq == r.before.Seq && h.Seq > 0 && r.before.Hash != h.Hash || h.Seq > r.before.Seq && r.hashes[h.Seq-r.before.Seq-1] != h.Hash {
		return fmt.Errorf("%w: it was rewritten: entry %d is another than it once was", ErrBroken, h.Seq)
	}
	return nil
}

// CrossCheck compares logs with what their servers witnessed of each other. The result has a line for each contradiction.
func CrossCheck(reports map[string]*Report) []string {
	var out []string
	for _, r := range reports {
		for _, e := range r.Entries {
			if e.Kind != Witness || e.Head == nil {
				continue
			}
			if other := reports[e.Head.Server]; other != nil {
				if err := other.Holds(*e.Head); err != nil {
					out = append(out, fmt.Sprintf("log of %s: %v; %s witnessed that at %s", e.Head.Server, err, e.Server, e.At.Format(time.RFC3339)))
				}
			}
		}
	}
	return out
}
