package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A block that nobody has cannot be read, by whom ever and however often the copy is opened, until it is written. What the copy had is not taken for it;
// but if that is what the block should be, it is.
func TestLostBlocks(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(1)}, {Block: 2, Data: blockOf(2)}}, true); err != nil {
		t.Fatal(err)
	}
	lost := []Write{{Block: 1, Lost: true, Sum: sumOf(blockOf(9))}, {Block: 2, Lost: true, Sum: sumOf(blockOf(2))}, {Block: 3, Lost: true, Sum: sumOf(blockOf(3))}}
	look := func(when string, m *Image, want ...error) {
		t.Helper()
		for i, e := range want {
			b := make([]byte, BlockBytes)
			if err := m.ReadBlock(uint64(i+1), b); !errors.Is(err, e) || e == nil && err != nil {
				t.Errorf("%s: block %d: %v, want %v", when, i+1, err, e)
			}
			if m.Sum(uint64(i+1)) != lost[i].Sum {
				t.Errorf("%s: the sum of block %d is not what it should be", when, i+1)
			}
		}
	}
	for i := range m.Blocks() { // so that all is in the image
		_ = m.ReadBlock(i, make([]byte, BlockBytes))
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openTestImage(t, dir, ImageConfig{})
	if err := m.Commit(lost, true); err != nil {
		t.Fatal(err)
	}
	look("in the journal", m, ErrBadBlock, nil, ErrBadBlock)
	look("after a crash", openTestImage(t, crash(t, dir), ImageConfig{}), ErrBadBlock, nil, ErrBadBlock)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openTestImage(t, dir, ImageConfig{})
	look("carried out", m, ErrBadBlock, nil, ErrBadBlock)
	if bad, _, err := m.Verify(0, 8); err != nil || len(bad) != 2 {
		t.Errorf("a check finds %v: %v", bad, err)
	}
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(9)}}, true); err != nil {
		t.Fatal(err)
	}
	look("written", m, nil, nil, ErrBadBlock)
}

// A block that the journal loses before it is carried out is lost, and no other.
func TestTheJournalLosesABlock(t *testing.T) {
	dir := t.TempDir()
	m := openTestImage(t, dir, ImageConfig{Bytes: 8 * BlockBytes})
	if err := m.Commit([]Write{{Block: 1, Data: blockOf(1)}, {Block: 2, Data: blockOf(2)}}, true); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	b[BlockBytes+77] ^= 2
	if err := os.WriteFile(filepath.Join(dir, "journal"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openTestImage(t, dir, ImageConfig{})
	if err := m.ReadBlock(1, b[:BlockBytes]); !errors.Is(err, ErrBadBlock) {
		t.Errorf("the lost block: %v", err)
	}
	if err := m.ReadBlock(2, b[:BlockBytes]); err != nil || b[0] != blockOf(2)[0] {
		t.Errorf("the other: %v", err)
	}
}
