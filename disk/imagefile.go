package disk

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// File is what an image needs of a file. Tests put files that fail in its place.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// OpenFile opens a file for an image; flags are those of package os.
type OpenFile func(path string, flags int) (File, error)

type osFile struct{ *os.File }

// openOSFile is OpenFile for real files.
func openOSFile(path string, flags int) (File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Size is in bytes.
func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// nextData returns where the file has contents next, from off on, or its size. A file that cannot tell has contents everywhere.
func nextData(f File, off, size int64) int64 {
	o, ok := f.(osFile)
	if !ok {
		return off
	}
	at, err := unix.Seek(int(o.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return off
	}
	return at
}

// readFull reads len(b) bytes; what lies behind the end of the file is zeros.
func readFull(f File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n < len(b) && (err == nil || errors.Is(err, io.EOF)) {
		clear(b[n:])
		return nil
	}
	return err
}
