package cases

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/tests/bed/cpio"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/machine"
	"github.com/cellvisor/cellvisor/vmm/virtio"
)

// guestLimit is how long a guest may take; the bed's processor is an emulated one inside an emulated one.
const guestLimit = 6 * time.Minute

// long skips a case in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("a long case")
	}
}

// bedFile reads a file of the bed, or skips the test where there is none.
func bedFile(t *testing.T, name string) []byte {
	t.Helper()
	dir := os.Getenv("CELLVISOR_BED")
	if dir == "" {
		t.Skip("CELLVISOR_BED is not set: stock kernels are booted by `make test-linux`")
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// initrd packs busybox, an init that runs script, and modules.
func initrd(t *testing.T, version, script string, modules ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "mod", "mnt"} {
		w.Dir(d)
	}
	w.Char("dev/console", 0o600, 5, 1)
	w.Char("dev/null", 0o666, 1, 3)
	w.File("bin/busybox", 0o755, bedFile(t, "busybox"))
	if strings.Contains(script, "walker") {
		w.File("bin/walker", 0o755, bedFile(t, "walker"))
	}
	init := `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp
`
	if len(modules) > 0 {
		modules = append(transport(version), modules...)
	}
	for _, m := range modules {
		w.File("mod/"+m+".ko", 0o644, bedFile(t, version+"/"+m+".ko"))
		init += "insmod /mod/" + m + ".ko || echo BAD module " + m + "\n"
	}
	w.File("init", 0o755, []byte(init+script+"\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// transport is the modules that a kernel needs before any device's driver; 6.12 has them built in.
func transport(version string) (modules []string) {
	for _, m := range []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"} {
		if _, err := os.Stat(filepath.Join(os.Getenv("CELLVISOR_BED"), version, m+".ko")); err == nil {
			modules = append(modules, m)
		}
	}
	return modules
}

// console collects what a guest prints, and lets a test wait for it.
type console struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	echo    bool
}

func newConsole() *console {
	return &console{changed: make(chan struct{}), echo: os.Getenv("CELLVISOR_BED_ECHO") != ""}
}

// Write implements io.Writer.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(b)
	if c.echo {
		os.Stdout.Write(b)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return len(b), nil
}

// String returns everything printed so far.
func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// waitFor waits until the guest has printed text.
func (c *console) waitFor(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(guestLimit)
	for {
		c.mu.Lock()
		found, changed := strings.Contains(c.text.String(), text), c.changed
		c.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("guest did not print %q in %v; it printed:\n%s", text, guestLimit, c)
		}
	}
}

// guest is a machine under test.
type guest struct {
	*machine.Machine
	console *console
}

// baseCmdline has mitigations off since the bed's processor is slow enough, and shows no secrets.
const baseCmdline = "console=ttyS0 panic=-1 mitigations=off quiet"

// options change a guest's configuration before it is made.
type option func(*machine.Config)

func withVCPUs(n int) option { return func(c *machine.Config) { c.Linux.VCPUs = n } }
func withCmdline(s string) option {
	return func(c *machine.Config) { c.Linux.Cmdline += " " + s }
}
func withDevices(add func(*machine.Board) error) option {
	return func(c *machine.Config) {
		before := c.Devices
		c.Devices = func(b *machine.Board) error {
			if before != nil {
				if err := before(b); err != nil {
					return err
				}
			}
			return add(b)
		}
	}
}

// withDisk adds a disk in a file; it returns the file's path, too.
func withDisk(t *testing.T, size int64, id string) (option, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), id)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return withDevices(func(b *machine.Board) error {
		disk, err := virtio.OpenDisk(path, false)
		if err != nil {
			return err
		}
		return b.AddDisk(disk, id, false)
	}), path
}

func withRestart(c *machine.Config)    { c.Restart = true }
func withCompressed(c *machine.Config) { c.Linux.KeepCompressed = true }

// startGuest boots a kernel of the bed with an initial RAM disk.
func startGuest(t *testing.T, kernel string, ramdisk []byte, options ...option) *guest {
	t.Helper()
	c := machine.Config{Linux: linux.Config{Memory: 256 * ident.MiB, VCPUs: 1, Kernel: bedFile(t, kernel), Initrd: ramdisk, Cmdline: baseCmdline}}
	// QEMU's emulation of SVM lets a guest set XCR0 behind its KVM's back, which kernels notice: without XSAVE there is nothing to set.
	c.Model = linux.ModelV2
	system, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { system.Close() })
	g := &guest{console: newConsole()}
	c.Board.Console = g.console
	for _, o := range options {
		o(&c)
	}
	if g.Machine, err = machine.New(system, c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	g.Start()
	return g
}

// finish waits for the guest's end, which must be of a kind.
func (g *guest) finish(t *testing.T, want machine.OutcomeKind) machine.Outcome {
	t.Helper()
	select {
	case <-g.Done():
	case <-time.After(guestLimit):
		t.Fatalf("guest did not end in %v; it printed:\n%s\n%s", guestLimit, g.console, g.Dump())
	}
	o := g.Wait()
	if o.Kind != want {
		t.Fatalf("guest ended by %s (kind %d), want kind %d; registers:\n%s\nit printed:\n%s", o.Reason, o.Kind, want, o.Registers, g.console)
	}
	return o
}

// mustPrint checks that the guest printed all of texts.
func (g *guest) mustPrint(t *testing.T, texts ...string) {
	t.Helper()
	all := g.console.String()
	for _, text := range texts {
		if !strings.Contains(all, text) {
			t.Fatalf("guest did not print %q; it printed:\n%s", text, all)
		}
	}
	if i := strings.Index(all, "BAD "); i >= 0 {
		line, _, _ := strings.Cut(all[i:], "\n")
		t.Fatalf("guest says: %s\nall it printed:\n%s", line, all)
	}
}

func since(start time.Time) string { return fmt.Sprintf("%.1fs", time.Since(start).Seconds()) }
