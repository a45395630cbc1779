package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// BlockBytes is the unit in which an image is checked, journalled and copied.
const BlockBytes = 4096

// Sentinels of images.
var (
	ErrDamaged  = errors.New("disk is damaged")
	ErrBadBlock = errors.New("block does not match its checksum")
	ErrNoImage  = errors.New("there is no image, and no size to make a new one of")
)

// Limits of the journal: from journalApply on it is carried out when a batch is made durable; at journalMost nothing more is taken.
const (
	journalApply = 4 << 20
	journalMost  = 256 << 20
)

// ImageConfig says what to open.
type ImageConfig struct {
	Bytes   int64    // of a new, empty image, rounded up to blocks; 0: only one that is there
	Source  string   // file that a new copy lies in, if it exists
	Discard bool     // what cannot be trusted is given up: the copy is brought into step with another one. All of it is read and verified
	Resize  bool     // one that is there gets Bytes
	Open    OpenFile // nil: real files
	Files   *Files   // instead of opening any: what OpenFiles has opened. The image has them from here on
}

// Image is one copy of a guest disk: raw blocks, a checksum for each, and a journal, so that a batch of writes is there as a whole or not at all.
//
//	<dir>/image     the raw blocks; perhaps a symbolic link to a file elsewhere
//	<dir>/sums      header, twice, then a CRC-32C for each block, of what lies in image
//	<dir>/journal   batches that are not carried out on image yet
//
// A read of a block that the journal has comes from there, any other from the image; both are verified. Its methods may be called from any
// goroutine.
//
//	open --fsync failed--> failed: nothing is written any more; after a failed fsync a second one would lie
type Image struct {
	dir string

	mu       sync.RWMutex
	data     File
	sumsFile File
	journal  File
	bytes    int64
	sums     []uint32          // of what lies in data
	newer    map[uint64]placed // blocks that the journal has
	head     imageHeader
	end      int64 // of the journal
	seq      uint64
	synced   uint64
	failed   error
	linked   bool // data is somebody's file, elsewhere
	rebuilt  bool
	damaged  int
}

// OpenImage opens the copy in dir, or makes it. One process at a time may have it open: it waits for a while for another one to close it.
func OpenImage(dir string, c ImageConfig) (*Image, error) {
	if c.Open == nil {
		c.Open = openOSFile
	}
	m := &Image{dir: dir, newer: map[uint64]placed{}}
	if err := m.open(c); err != nil {
		m.closeFiles()
		return nil, fmt.Errorf("open disk %s: %w", filepath.Base(dir), err)
	}
	return m, nil
}

func (m *Image) open(c ImageConfig) error {
	err := m.openFiles(c)
	if err != nil {
		return err
	}
	size, err := m.data.Size()
	if err == nil && c.Resize && size != c.Bytes {
		size, err = c.Bytes, m.data.Truncate(c.Bytes)
	}
	if err != nil {
		return err
	}
	m.bytes = size / BlockBytes * BlockBytes
	if m.bytes == 0 {
		return fmt.Errorf("the image has %d bytes: too small for a disk", size)
	}
	if err := m.loadSums(c); err != nil {
		return err
	}
	return m.replay(c)
}

func (m *Image) openFiles(c ImageConfig) (err error) {
	if f := c.Files; f != nil {
		m.data, m.sumsFile, m.journal, m.linked = osFile{f.Image}, osFile{f.Sums}, osFile{f.Journal}, f.Linked
		return nil
	}
	if m.linked, err = prepare(m.dir, c); err != nil {
		return err
	}
	if m.data, err = c.Open(filepath.Join(m.dir, "image"), os.O_RDWR); err != nil {
		return err
	}
	if m.sumsFile, err = c.Open(filepath.Join(m.dir, "sums"), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if m.journal, err = c.Open(filepath.Join(m.dir, "journal"), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if f, ok := m.journal.(osFile); ok {
		return claim(f.File, claimPatience)
	}
	return nil
}

// prepare sees to it that there is an image in dir to open, and tells whether it is a link.
func prepare(dir string, c ImageConfig) (linked bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	path := filepath.Join(dir, "image")
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := create(path, c); err != nil {
			return false, err
		}
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSymlink != 0, err
}

func create(path string, c ImageConfig) error {
	if c.Source != "" {
		if _, err := os.Stat(c.Source); err == nil {
			return os.Symlink(c.Source, path)
		}
	}
	if c.Bytes <= 0 {
		if c.Source != "" {
			return fmt.Errorf("%w: no file %s on this server", ErrNoImage, c.Source)
		}
		return ErrNoImage
	}
	if c.Source != "" {
		if err := os.Symlink(c.Source, path); err != nil {
			return err
		}
	}
	f, err := c.Open(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate((c.Bytes+BlockBytes-1)/BlockBytes*BlockBytes), f.Sync(), f.Close())
}

// Blocks is the disk's size in blocks.
func (m *Image) Blocks() uint64 { return uint64(m.bytes) / BlockBytes }

// Damaged is how many blocks did not match their checksums when the copy was opened with Discard.
func (m *Image) Damaged() int { return m.damaged }

// Rebuilt tells whether the checksums had to be computed from the image's contents: it is new here, or was changed from outside.
func (m *Image) Rebuilt() bool { return m.rebuilt }

// replay takes in what the journal has.
func (m *Image) replay(c ImageConfig) error {
	batches, err := scanJournal(m.journal, m.head.epoch, m.Blocks())
	if errors.Is(err, ErrDamaged) && c.Discard {
		err = nil // what the image has is checked, and filled up from elsewhere
	}
	if err != nil {
		return err
	}
	for _, b := range batches {
		for _, p := range b.where {
			m.newer[p.block] = p
		}
		m.seq, m.end = b.seq, b.end
	}
	m.head.modified = 0
	if err := m.apply(); err != nil {
		return err
	}
	return m.journal.Truncate(m.end)
}

// ReadBlock reads a block into buf, BlockBytes long. The error wraps ErrBadBlock if it is not what was written, or cannot be read.
func (m *Image) ReadBlock(block uint64, buf []byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.read(block, buf)
}

// read requires mu.
func (m *Image) read(block uint64, buf []byte) error {
	if block >= m.Blocks() {
		return fmt.Errorf("block %d of %d", block, m.Blocks())
	}
	p, journalled := m.newer[block]
	from, off, want := m.data, int64(block)*BlockBytes, m.sums[block]
	if journalled {
		from, off, want = m.journal, p.offset, p.sum
		switch off {
		case 0:
			clear(buf)
			return nil
		case lost: // but for the luck that this copy had what it should be
			from, off = m.data, int64(block)*BlockBytes
		}
	}
	if err := readFull(from, buf, off); errors.Is(err, os.ErrClosed) {
		return err
	} else if err != nil { // what cannot be read can be written again
		return fmt.Errorf("%w: block %d: %w", ErrBadBlock, block, err)
	}
	if sumOf(buf) != want {
		return fmt.Errorf("%w: block %d", ErrBadBlock, block)
	}
	return nil
}

// readTwice is read, with a second try: a block that is given up is lost. It requires mu.
func (m *Image) readTwice(block uint64, buf []byte) error {
	err := m.read(block, buf)
	if errors.Is(err, ErrBadBlock) {
		err = m.read(block, buf)
	}
	return err
}

// Sum is the checksum of what a block should hold.
func (m *Image) Sum(block uint64) uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p, ok := m.newer[block]; ok {
		return p.sum
	}
	return m.sums[block]
}

// Matches tells whether contents are what a block should hold.
func (m *Image) Matches(block uint64, contents []byte) bool { return sumOf(contents) == m.Sum(block) }

// Err is why nothing can be written any more, nil if it can.
func (m *Image) Err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.failed
}

// Generation is the number that SetGeneration wrote last.
func (m *Image) Generation() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.head.generation
}

// SetGeneration makes a number durable that tells this copy from one of earlier times.
func (m *Image) SetGeneration(g uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head.generation = g
	return m.writeHeader()
}

// Commit adds writes as one batch: after a crash all of them are there or none. With sync they, and all before them, are durable when it returns.
// A batch that could not be written is as if it had never been tried.
func (m *Image) Commit(writes []Write, sync bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	if len(writes) > MaxBatchBlocks {
		return fmt.Errorf("batch of %d blocks, at most %d are allowed", len(writes), MaxBatchBlocks)
	}
	if len(writes) > 0 {
		if m.end > journalMost {
			return fmt.Errorf("the journal has %d bytes, and cannot be carried out", m.end)
		}
		b, where := encodeBatch(writes, m.head.epoch, m.seq+1, m.synced, m.end)
		if _, err := m.journal.WriteAt(b, m.end); err != nil {
			if terr := m.journal.Truncate(m.end); terr != nil {
				m.failed = fmt.Errorf("write disk: %w", errors.Join(err, terr))
			}
			return fmt.Errorf("write disk: %w", err)
		}
		for _, p := range where {
			m.newer[p.block] = p
		}
		m.seq, m.end = m.seq+1, m.end+int64(len(b))
	}
	if !sync {
		return nil
	}
	return m.sync()
}

// sync requires mu.
func (m *Image) sync() error {
	if m.seq > m.synced {
		if err := m.journal.Sync(); err != nil {
			m.failed = fmt.Errorf("flush disk: %w", err)
			return m.failed
		}
		m.synced = m.seq
	}
	if m.end >= journalApply {
		_ = m.apply() // what fails stays in the journal, and is tried again
	}
	return nil
}

// apply carries the journal out on the image. It requires mu, or that nobody else knows the image yet.
func (m *Image) apply() error {
	if len(m.newer) == 0 && m.end == 0 {
		return nil
	}
	blocks := make([]uint64, 0, len(m.newer))
	for block := range m.newer {
		blocks = append(blocks, block)
	}
	slices.Sort(blocks)
	buf := make([]byte, BlockBytes)
	for _, block := range blocks {
		switch err := m.readTwice(block, buf); {
		case errors.Is(err, ErrBadBlock): // the journal has lost it: the image goes on without, and its checksum says so
			continue
		case err != nil:
			return err
		}
		if _, err := m.data.WriteAt(buf, int64(block)*BlockBytes); err != nil {
			return fmt.Errorf("write disk: %w", err)
		}
	}
	if err := m.data.Sync(); err != nil {
		m.failed = fmt.Errorf("flush disk: %w", err)
		return m.failed
	}
	old := make([]uint32, len(blocks))
	for i, block := range blocks {
		old[i], m.sums[block] = m.sums[block], m.newer[block].sum
	}
	m.head.epoch++
	if err := m.writeSums(blocks); err != nil {
		m.head.epoch--
		for i, block := range blocks {
			m.sums[block] = old[i]
		}
		m.failed = fmt.Errorf("write checksums: %w", err)
		return m.failed
	}
	clear(m.newer)
	m.end, m.seq, m.synced = 0, 0, 0
	return m.journal.Truncate(0)
}

// Close carries the journal out and closes the files.
func (m *Image) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.failed
	if err == nil {
		err = m.apply()
	}
	if at, ok := m.modified(); err == nil && ok {
		m.head.modified = at
		err = m.writeHeader()
	}
	if m.failed == nil {
		m.failed = os.ErrClosed
	}
	return errors.Join(err, m.closeFiles())
}

func (m *Image) closeFiles() error {
	var errs []error
	for _, f := range []File{m.data, m.sumsFile, m.journal} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
