package server

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/wire"
)

const (
	logTailBytes       = 512 << 10 // of this process's log, kept in memory for bundles
	workerLogTailBytes = 64 << 10
	stackBytesMax      = 4 << 20
)

// logTail keeps the newest of what is written to it.
type logTail struct {
	mu  sync.Mutex
	buf []byte // protected by mu
}

// Write implements io.Writer.
func (t *logTail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - logTailBytes; over > logTailBytes/4 { // not at every line
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(b), nil
}

func (t *logTail) text() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// DebugDump implements api.CellvisorServer: what a bundle holds of one server.
func (v *service) DebugDump(ctx context.Context, req *api.DebugDumpRequest) (*api.DebugDumpResponse, error) {
	snap := v.s.board.now()
	sv, err := v.server(snap, req.GetServer())
	if err != nil {
		return nil, err
	}
	if sv.ID != v.s.store.Identity().Server {
		client, err := v.at(ctx, sv)
		if err != nil {
			return nil, err
		}
		return client.DebugDump(v.forward(ctx), req)
	}
	out := &api.DebugDumpResponse{Server: string(sv.Name), Version: Version, Stacks: allStacks(), Log: v.s.opt.Tail.text(), WorkerLogs: map[string]string{}}
	for _, w := range v.s.workers.all() {
		name := filepath.Base(w.dir)
		if vm := snap.state.VM(w.vm); vm != nil {
			name = vm.Spec.Name
		}
		out.WorkerLogs[name] = fileTail(filepath.Join(w.dir, wire.WorkerLogFile), workerLogTailBytes)
	}
	return out, nil
}

// allStacks is the stacks of all goroutines.
func allStacks() string {
	for size := 256 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= stackBytesMax {
			return string(buf[:n])
		}
	}
}

// fileTail returns the end of a file, what can be read of it.
func fileTail(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err.Error()
	}
	buf := make([]byte, min(size, limit))
	n, _ := f.ReadAt(buf, size-int64(len(buf)))
	return string(buf[:n])
}
