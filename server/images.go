package server

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/vmm/ram"
)

// images keeps what guests are started from in memory, sealed, once for all VMs of this server that are started from it; they map its pages, copy on write. Serve
// fills an image from the blob, checks its name, which is its checksum, and hands the descriptor to each worker that it starts. So a blob may be removed or damaged
// on disk while guests run, and no worker can change what others have.
//
//	blob --read, checked--> sealed memfd --descriptor--> worker --mapped privately--> guest memory
//
// An image is kept as long as this serve has a worker that was given it. What workers of an earlier serve have is found in /proc.
type images struct {
	mu   sync.Mutex
	held map[string]*image // by SHA-256
}

type image struct {
	ready chan struct{} // closed when file or err is set
	file  *os.File
	err   error
	users int // protected by images.mu
}

var errDamaged = errors.New("what the VM is started from is damaged")

// optionImage is a VM's option about the pages of what it is started from; imageOwn: it has them alone.
const (
	optionImage = "image"
	imageOwn    = "own"
)

// imageLeast is the least file that is worth being shared: the built-in payloads, and small ones of operators', are a few pages.
const imageLeast = 256 * ident.KiB

// imageName begins the names of images in /proc/PID/fd; the checksum follows.
const imageName = "cellvisor-image-"

// take returns the image of a blob, and what gives it up again. others are processes that may have it.
func (m *images) take(sha, path string, others []int) (*os.File, func(), error) {
	m.mu.Lock()
	im := m.held[sha]
	first := im == nil
	if first {
		if m.held == nil {
			m.held = map[string]*image{}
		}
		im = &image{ready: make(chan struct{})}
		m.held[sha] = im
	}
	im.users++
	m.mu.Unlock()
	if first {
		if im.file = findImage(sha, others); im.file == nil {
			im.file, im.err = makeImage(sha, path)
		}
		close(im.ready)
	}
	<-im.ready
	give := sync.OnceFunc(func() { m.give(sha, im) })
	if im.err != nil {
		give()
		return nil, nil, im.err
	}
	return im.file, give, nil
}

func (m *images) give(sha string, im *image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if im.users--; im.users > 0 {
		return
	}
	if im.file != nil {
		im.file.Close()
	}
	delete(m.held, sha)
}

// makeImage reads a blob into an image.
func makeImage(sha, path string) (*os.File, error) {
	blob, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	info, err := blob.Stat()
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	file, err := ram.SealImage(imageName+sha, io.TeeReader(blob, sum), ident.Bytes(info.Size()))
	if err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != sha {
		file.Close()
		return nil, fmt.Errorf("%w: the SHA-256 of %s is %s: remove it, and it is fetched from another server that has it", errDamaged, path, got)
	}
	return file, nil
}

// findImage looks for an image among what processes have open. It trusts none of them: what it finds must be sealed and have the right checksum.
func findImage(sha string, pids []int) *os.File {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or is of another user
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(to, "/memfd:"+imageName+sha) {
				continue
			}
			if file := openImage(sha, path); file != nil {
				return file
			}
		}
	}
	return nil
}

func openImage(sha, path string) *os.File {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	sealed, err := ram.OpenImage(file)
	if err != nil {
		file.Close()
		return nil
	}
	defer sealed.Close()
	if sum := sha256.Sum256(sealed.Bytes()); hex.EncodeToString(sum[:]) != sha {
		file.Close()
		return nil
	}
	return file
}

// shareable tells whether a file is worth being an image: an executable, whose segments lie in it as they do in memory, or an initial RAM disk. A compressed kernel
// is decompressed by each worker, so nothing of the file is in a guest.
func shareable(path string, initrd bool) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	magic := make([]byte, 4)
	if _, rerr := io.ReadFull(file, magic); err != nil || rerr != nil || info.Size() < int64(imageLeast) {
		return false
	}
	return initrd || string(magic) == "\x7fELF"
}

// shareFiles puts images in the place of a guest's files, where the worker can share their pages: a VM that is not held in several places, or with less memory than
// it has. It returns the descriptors for the process, and what gives them up. A file that cannot be kept in memory is used as it is.
func (s *supervisor) shareFiles(a monitor.StartWorker, files *guestFiles) (give []*os.File, release func(), err error) {
	spec := &a.Spec
	var releases []func()
	release = func() {
		for _, f := range releases {
			f()
		}
	}
	if spec.Options[optionImage] == imageOwn || spec.Standby || len(spec.LocalVCPUs) != spec.VCPUs || s.rule.on || files.saved != "" {
		return nil, release, nil
	}
	share := func(path *string, sha string, initrd bool) {
		if err != nil || *path == "" || !shareable(*path, initrd) {
			return
		}
		file, done, terr := s.images.take(sha, *path, s.pids())
		if errors.Is(terr, errDamaged) {
			err = terr
			return
		}
		if terr != nil {
			s.log.Warn().Err(terr).Str("sha256", sha).Msg("what a VM is started from cannot be shared with others")
			return
		}
		releases = append(releases, done)
		*path = fmt.Sprintf("/proc/self/fd/%d", firstExtraFile+len(give))
		give = append(give, file)
	}
	share(&files.payload, a.Payload.SHA256, false)
	share(&files.initrd, a.Payload.Initrd, true)
	return give, release, err
}

// firstExtraFile is the number of the first of exec.Cmd's ExtraFiles.
const firstExtraFile = 3

// pids lists this server's worker processes.
func (s *supervisor) pids() (all []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if p := w.process(); p != nil {
			all = append(all, p.pid)
		}
	}
	return all
}

// prepareAndLaunch brings the guest's files here and starts the worker. What it returns besides is called when the process is gone, or this one ends.
func (s *supervisor) prepareAndLaunch(w *worker, a monitor.StartWorker) (cmd *exec.Cmd, release func(), err error) {
	files, err := s.prepare(w.ctx, a)
	if err != nil {
		return nil, func() {}, err
	}
	shared, release, err := s.shareFiles(a, &files)
	if err == nil {
		cmd, err = s.launch(w, a, files, shared)
	}
	return cmd, release, err
}
