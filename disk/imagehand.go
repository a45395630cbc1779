package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Files are the open files of a copy, for a process that may not open them itself.
type Files struct {
	Image, Sums, Journal *os.File
	Linked               bool // the image is somebody's file elsewhere
}

// OpenFiles opens the copy in dir for another process, or makes it, as OpenImage with the same configuration does.
func OpenFiles(dir string, c ImageConfig) (*Files, error) {
	if c.Open == nil {
		c.Open = openOSFile
	}
	f := &Files{}
	err := f.open(dir, c)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open disk %s: %w", filepath.Base(dir), err)
	}
	return f, nil
}

func (f *Files) open(dir string, c ImageConfig) (err error) {
	if f.Linked, err = prepare(dir, c); err != nil {
		return err
	}
	if f.Image, err = os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR, 0o600); err != nil {
		return err
	}
	if f.Sums, err = os.OpenFile(filepath.Join(dir, "sums"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if f.Journal, err = os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	return claim(f.Journal, claimPatience)
}

// Close closes what is open.
func (f *Files) Close() error {
	return errors.Join(closeFile(f.Image), closeFile(f.Sums), closeFile(f.Journal))
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
