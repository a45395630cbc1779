package ram

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/ident"
)

// imageSeals are what an image must have: nobody can change it, make it shorter or longer, or take a seal back, whoever holds it.
const imageSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// ErrNoImage is wrapped by OpenImage when a file is an ordinary one.
var ErrNoImage = errors.New("not a sealed image")

// SealImage copies size bytes into memory of this host that can never change again: a file to start guests from, which all of them can map. The name is
// what the kernel shows for it. A file on disk would not do: whoever can write or truncate it changes pages under running guests.
func SealImage(name string, from io.Reader, size ident.Bytes) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, describe("memfd_create for an image", size, err)
	}
	file := os.NewFile(uintptr(fd), name)
	n, err := io.Copy(file, io.LimitReader(from, int64(size)))
	if err == nil && n != int64(size) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, imageSeals)
	}
	if err != nil {
		file.Close()
		return nil, describe("keep an image in memory", size, err)
	}
	return file, nil
}

// Image is a sealed file to start a guest from.
type Image struct {
	fd   int
	data []byte // a mapping of the file, to be read
}

// OpenImage takes a file that SealImage made; the caller may close it then. The error wraps ErrNoImage if it is another one.
func OpenImage(file *os.File) (*Image, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(from uintptr) {
		var seals int
		if seals, err = unix.FcntlInt(from, unix.F_GET_SEALS, 0); err != nil || seals&imageSeals != imageSeals {
			err = fmt.Errorf("%s: %w", file.Name(), ErrNoImage)
			return
		}
		fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, err
	}
	im := &Image{fd: fd}
	info, err := file.Stat()
	if err == nil && info.Size() > 0 {
		im.data, err = unix.Mmap(fd, 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		im.Close()
		return nil, fmt.Errorf("map the image %s: %w", file.Name(), err)
	}
	return im, nil
}

// Bytes is the image's contents, which may be read until Close.
func (im *Image) Bytes() []byte { return im.data }

// Offset returns where in the image a piece of Bytes begins; ok is false if b is anything else. A piece must reach, by its capacity, to the image's end, as
// slicing makes it.
func (im *Image) Offset(b []byte) (off int64, ok bool) {
	if im == nil || len(b) == 0 || len(im.data) == 0 {
		return 0, false
	}
	tail, all := b[:cap(b)], im.data[:cap(im.data)]
	if len(tail) > len(all) || &tail[len(tail)-1] != &all[len(all)-1] {
		return 0, false
	}
	return int64(len(all) - len(tail)), true
}

// Close gives the image up. Guest memory that has pages of it keeps them.
func (im *Image) Close() {
	if im == nil {
		return
	}
	if im.data != nil {
		_ = unix.Munmap(im.data)
	}
	unix.Close(im.fd)
	im.data, im.fd = nil, -1
}
