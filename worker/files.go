package worker

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/vmm/probe"
	"github.com/cellvisor/cellvisor/wire"
)

// files are what this worker opens by name. A jailed one can open nothing, so whatever it may need later is held open from before: at set-up
// hold is called for each, and open gives out what is held.
type files struct {
	dir  string
	held map[string]*os.File
	cpu  string // the host's processor, which a saved VM must find again

	logLimit int64 // bytes that each log of output may have; 0: any number
}

// holdAll opens what the part may need once it runs.
func (w *Worker) holdAll() error {
	for _, name := range []string{wire.WorkerConsoleFile, wire.WorkerConsoleStartFile, wire.WorkerOutputFile, wire.WorkerOutputStartFile} {
		if err := w.files.hold(name, os.O_CREATE|os.O_RDWR); err != nil {
			return err
		}
	}
	w.files.cpu, w.files.logLimit = probe.CPUModel(), logLimit(w.spec.Options)
	paths := []string{w.spec.PayloadPath, w.spec.SavedPath}
	if w.spec.Linux != nil {
		paths = append(paths, w.spec.Linux.InitrdPath)
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		if err := w.files.hold(path, os.O_RDONLY); err != nil {
			return err
		}
	}
	if w.spec.Jail != nil && w.spec.Linux != nil && (w.spec.Standby || len(w.spec.LocalVCPUs) == w.spec.VCPUs || w.spec.Part == homeOfSpanned) {
		return w.holdTAPs()
	}
	return nil
}

// path of a name: those of the worker's directory are relative.
func (f *files) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.dir, name)
}

func (f *files) hold(name string, flags int) error {
	file, err := os.OpenFile(f.path(name), flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if f.held == nil {
		f.held = map[string]*os.File{}
	}
	f.held[name] = file
	return nil
}

// open gives out a file of its own for one that is held, or opens it. Truncation and creation are done either way.
func (f *files) open(name string, flags int) (*os.File, error) {
	held := f.held[name]
	if held == nil {
		return os.OpenFile(f.path(name), flags, 0o600)
	}
	fd, err := unix.FcntlInt(held.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), held.Name())
	if flags&os.O_TRUNC != 0 {
		if err := file.Truncate(0); err != nil {
			file.Close()
			return nil, err
		}
	}
	return file, nil
}

// read returns a file's contents.
func (f *files) read(name string) ([]byte, error) {
	file, err := f.open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(file, 0, info.Size())) // what is held has one offset for all
}

func readSpec(dir string) (*wire.WorkerSpec, error) {
	path := filepath.Join(dir, wire.WorkerSpecFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("worker specification: %w", err)
	}
	spec := &wire.WorkerSpec{}
	if err := json.Unmarshal(text, spec); err != nil {
		return nil, fmt.Errorf("worker specification %s: %w", path, err)
	}
	return spec, nil
}
