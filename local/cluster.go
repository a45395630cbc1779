package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/trust"
)

// Cluster is what cluster.json holds.
type Cluster struct {
	Version int      `json:"version"`
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Dir     string   `json:"dir"`
	Cells   int      `json:"cells"`
	PerCell int      `json:"servers_per_cell"`
	Slots   int      `json:"slots"`
	Sched   string   `json:"sched,omitempty"`
	Memory  uint64   `json:"memory_bytes"`
	Drills  bool     `json:"drills,omitempty"` // may break its servers
	Down    bool     `json:"down"`             // taken down on purpose: whoever supervises it stops doing so
	Live    bool     `json:"live"`             // all servers were live at once since it was last started
	Servers []Server `json:"servers"`
}

// Server is one server of a local cluster.
type Server struct {
	Name    string  `json:"name"`
	Cell    string  `json:"cell"`
	Role    string  `json:"role"`
	Config  string  `json:"config"`
	Log     string  `json:"log"`
	DataDir string  `json:"data_dir"`
	API     string  `json:"api"`
	APITCP  string  `json:"api_tcp,omitempty"` // asks for a certificate
	Peer    string  `json:"peer"`
	Process Process `json:"process"` // as last started
}

const (
	clusterFile    = "cluster.json"
	lockFile       = "lock"
	clusterVersion = 1
)

// ErrNoCluster says that a directory holds no cluster.
var ErrNoCluster = errors.New("no cluster here")

// DefaultDir is where `up` puts a cluster unless told otherwise: one for each user.
func DefaultDir() string {
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		return filepath.Join(run, "cellvisor")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("cellvisor-%d", os.Getuid()))
}

// Load reads the cluster in dir. The error wraps ErrNoCluster if there is none.
func Load(dir string) (*Cluster, error) {
	path := filepath.Join(dir, clusterFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoCluster)
	}
	if err != nil {
		return nil, err
	}
	var c Cluster
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if c.Version != clusterVersion {
		return nil, fmt.Errorf("%s has version %d, this program knows %d", path, c.Version, clusterVersion)
	}
	return &c, nil
}

// save writes cluster.json so that a reader sees the old one or the new one. The caller holds the lock.
func (c *Cluster) save() error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(c.Dir, clusterFile)
	if err := os.WriteFile(path+".new", append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// update changes cluster.json under the lock.
func update(dir string, change func(*Cluster) error) (*Cluster, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := Load(dir)
	if err != nil {
		return nil, err
	}
	if err := change(c); err != nil {
		return nil, err
	}
	return c, c.save()
}

// lock waits for the directory's lock. Holders keep it for milliseconds only.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// Addrs returns the cluster's API addresses in the form that api.Dial takes.
func (c *Cluster) Addrs() string {
	var out []string
	for _, s := range c.Servers {
		out = append(out, s.API)
	}
	return strings.Join(out, ",")
}

// OperatorFiles are the files of the certificate that acts on the cluster over TCP; empty for a cluster without certificates.
func (c *Cluster) OperatorFiles() trust.Files {
	f := (&trust.Authority{Dir: filepath.Join(c.Dir, tlsDir)}).Files(operatorName)
	if _, err := os.Stat(f.Cert); err != nil {
		return trust.Files{}
	}
	return f
}

// Server returns the server of that name, or nil.
func (c *Cluster) Server(name string) *Server {
	for i := range c.Servers {
		if c.Servers[i].Name == name {
			return &c.Servers[i]
		}
	}
	return nil
}

// Abs makes a cluster's directory the one spelling that is used everywhere: absolute, links resolved as far as it exists.
func Abs(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return abs, nil
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}
