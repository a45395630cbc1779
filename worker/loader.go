package worker

import (
	"errors"
	"os"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// loader writes what a guest is started from into its memory. A file that serve hands over as a sealed image is not written where it lies in whole pages:
// these are shared with all other guests of this server that are started from it, copy on write. It implements machine.Backing.
type loader struct {
	deviceMemory
	images []*ram.Image
}

// shareLeastPages is how many pages in a row are worth a mapping of their own.
const shareLeastPages = 16

// read returns the contents of a file, which may be used until close.
func (l *loader) read(name string) ([]byte, error) {
	file, err := l.w.files.open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	image, err := ram.OpenImage(file)
	if errors.Is(err, ram.ErrNoImage) {
		return l.w.files.read(name)
	}
	if err != nil {
		return nil, err
	}
	l.images = append(l.images, image)
	return image.Bytes(), nil
}

func (l *loader) close() {
	for _, image := range l.images {
		image.Close()
	}
}

// WriteAt implements io.WriterAt.
func (l *loader) WriteAt(b []byte, off int64) (int, error) {
	for _, image := range l.images {
		if from, ok := image.Offset(b); ok {
			return l.share(b, off, image, from)
		}
	}
	return l.deviceMemory.WriteAt(b, off)
}

// share puts a piece of an image at off: its whole pages by sharing them, what is left by writing it.
func (l *loader) share(b []byte, off int64, image *ram.Image, from int64) (int, error) {
	p := l.w.plane
	first, end := (off+ident.PageSize-1)>>ident.PageShift, (off+int64(len(b)))>>ident.PageShift
	if (off-from)%ident.PageSize != 0 || end-first < shareLeastPages {
		return l.deviceMemory.WriteAt(b, off)
	}
	head, body := int(first<<ident.PageShift-off), int((end-first)<<ident.PageShift)
	p.written(ident.PageNo(first), ident.PageNo(end-1))
	shared, err := p.ram.Share(ident.PageNo(first), image, from+int64(head), uint64(end-first))
	if err != nil {
		return 0, err
	}
	if !shared {
		return l.deviceMemory.WriteAt(b, off)
	}
	for page := first; page < end; page++ {
		p.dirty.mark(ident.PageNo(page))
	}
	if head > 0 {
		if n, err := l.deviceMemory.WriteAt(b[:head], off); err != nil {
			return n, err
		}
	}
	if head+body < len(b) {
		if n, err := l.deviceMemory.WriteAt(b[head+body:], off+int64(head+body)); err != nil {
			return head + body + n, err
		}
	}
	return len(b), nil
}
