package worker

import (
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/kvm"
)

// load writes the guest's image into memory, which home does once, and lets the vCPUs of all parts begin.
func (w *Worker) load() {
	if w.spec.SavedPath != "" && !w.fromSaved {
		w.fromSaved = true // a later boot is from the image
		if err := w.loadSaved(); err != nil && !errors.Is(err, errNewLife) {
			w.fail(fmt.Errorf("restore the saved VM: %w", err))
		}
		return
	}
	if w.linux != nil {
		if err := w.loadLinux(); err != nil {
			w.fail(fmt.Errorf("load Linux: %w", err))
		}
		return
	}
	from := &loader{deviceMemory: deviceMemory{w}}
	defer from.close()
	layout, err := w.layout(from)
	if err == nil {
		err = layout.Write(from)
	}
	if err == nil {
		err = w.addDevices(w.home.Load())
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

// layout places the payload, whose bytes are the loader's.
func (w *Worker) layout(from *loader) (*boot.Layout, error) {
	var image []byte
	var err error
	if w.spec.Builtin != "" {
		image, err = payload.Open(w.spec.Builtin)
	} else {
		image, err = from.read(w.spec.PayloadPath)
	}
	if err != nil {
		return nil, err
	}
	return boot.Load(image, boot.Config{Memory: w.spec.MemoryBytes, VCPUs: w.spec.VCPUs, Args: w.spec.Args, Window: w.hasDevices()})
}
