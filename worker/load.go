package worker

import (
	"errors"
	"fmt"
	"os"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// loadBatch is how many pages are pinned at once while the image is written.
const loadBatch = 64

// load writes the guest's image into memory, which home does once, and lets the vCPUs of all parts begin.
func (w *Worker) load() {
	if w.linux != nil {
		if err := w.loadLinux(); err != nil {
			w.fail(fmt.Errorf("load Linux: %w", err))
		}
		return
	}
	layout, err := w.layout()
	if err == nil {
		err = layout.Write(deviceMemory{w})
	}
	if errors.Is(err, errNewLife) {
		return // the guest boots again, or goes back to a checkpoint
	}
	if err != nil {
		w.fail(fmt.Errorf("load payload: %w", err))
		return
	}
	origins := make([][]byte, len(layout.Starts))
	for i, s := range layout.Starts {
		origins[i] = encodeStart(kvm.Start(s))
	}
	w.home.Load().setLoaded(origins)
}

func (w *Worker) layout() (*boot.Layout, error) {
	var image []byte
	var err error
	if w.spec.Builtin != "" {
		image, err = payload.Open(w.spec.Builtin)
	} else {
		image, err = os.ReadFile(w.spec.PayloadPath)
	}
	if err != nil {
		return nil, err
	}
	return boot.Load(image, boot.Config{Memory: w.spec.MemoryBytes, VCPUs: w.spec.VCPUs, Args: w.spec.Args})
}

// deviceMemory is guest memory as a device writes it: each page is brought here by the protocol and held while it is written.
type deviceMemory struct{ w *Worker }

// WriteAt implements io.WriterAt.
func (d deviceMemory) WriteAt(b []byte, off int64) (int, error) {
	p := d.w.plane
	if !d.w.spans() {
		defer d.mark(b, off)
		return p.ram.WriteAt(b, off)
	}
	done := 0
	for done < len(b) {
		first := ident.PageNo(uint64(off+int64(done)) >> ident.PageShift)
		end := min(int64(first+loadBatch)<<ident.PageShift, off+int64(len(b)))
		n := int(end - off - int64(done))
		if err := d.writeBatch(b[done:done+n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// writeBatch writes bytes that lie in at most loadBatch pages. It pins them in rising order, as all who pin several pages do.
func (d deviceMemory) writeBatch(b []byte, off int64) error {
	p := d.w.plane
	first := ident.PageNo(uint64(off) >> ident.PageShift)
	last := ident.PageNo(uint64(off+int64(len(b))-1) >> ident.PageShift)
	var tokens []uint64
	defer func() {
		for i, token := range tokens {
			p.unpin(first+ident.PageNo(i), token)
		}
	}()
	var held []<-chan error
	for page := first; page <= last; page++ {
		token, answer := p.pin(page, true)
		tokens, held = append(tokens, token), append(held, answer)
	}
	for _, answer := range held {
		if err := <-answer; err != nil {
			return err
		}
	}
	defer d.mark(b, off) // before the pages may leave
	_, err := p.ram.WriteAt(b, off)
	return err
}

// mark notes the pages for the next checkpoint: a device's writes are not in KVM's log.
func (d deviceMemory) mark(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	for page := off >> ident.PageShift; page <= (off+int64(len(b))-1)>>ident.PageShift; page++ {
		d.w.plane.dirty.mark(ident.PageNo(page))
	}
}
