package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/vmm/linux"
)

// Guest kernels: a name of ours, and a prefix of Debian's packages of which the newest is taken. The first is the outer machine's, too.
var kernels = []struct{ name, prefix string }{
	{"6.12", "linux-image-6.12."},
	{"6.1", "linux-image-6.1.0-"},
}

// Modules that guests load, in this order, by path below kernel/.
var guestModules = []string{
	"drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci",
	"drivers/block/virtio_blk", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
	"drivers/char/hw_random/virtio-rng", "drivers/virtio/virtio_balloon",
}

// Modules of the outer machine.
var outerModules = []string{"virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd", "drivers/net/tun"}

// fetch fills the cache. What is there already stays.
func (b *bed) fetch() error {
	if err := os.MkdirAll(b.guestFilesPath, 0o755); err != nil {
		return err
	}
	if err := b.tools(); err != nil {
		return err
	}
	for _, k := range kernels {
		if b.short && k.name != outerKernel {
			continue
		}
		if err := b.fetchKernel(k.name, k.prefix); err != nil {
			return fmt.Errorf("kernel %s: %w", k.name, err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.guestFilesPath, "busybox"), busybox, 0o755)
}

// tools installs what the bed runs on, if it is missing.
func (b *bed) tools() error {
	_, err1 := exec.LookPath("qemu-system-x86_64")
	_, err2 := os.Stat("/bin/busybox")
	_, err3 := exec.LookPath("xz")
	if err1 == nil && err2 == nil && err3 == nil {
		return nil
	}
	if err := asRoot("apt-get", "update", "-qq"); err != nil {
		return err
	}
	return asRoot("apt-get", "install", "-y", "-qq", "--no-install-recommends", "qemu-system-x86", "busybox-static", "xz-utils")
}

// asRoot runs a program as root, by sudo if this is not root and sudo asks for no password.
func asRoot(name string, args ...string) error {
	if os.Getuid() != 0 {
		name, args = "sudo", append([]string{"-n", name}, args...)
	}
	return command("", name, args...)
}

func (b *bed) fetchKernel(name, prefix string) error {
	stamp := filepath.Join(b.guestFilesPath, name, fmt.Sprintf(".complete-%d", len(guestModules))) // a longer list is unpacked anew
	if _, err := os.Stat(stamp); err == nil {
		return nil
	}
	dir := filepath.Join(b.cache, "packages", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")); len(found) == 0 {
		if err := download(dir, prefix); err != nil {
			// Lists of packages that are old name what is no longer there.
			if err := asRoot("apt-get", "update", "-qq"); err != nil {
				return err
			}
			if err := download(dir, prefix); err != nil {
				return err
			}
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("package has %d kernels: %v", len(found), err)
	}
	image, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	elf, err := linux.Decompress(image)
	if err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	if err := b.unpackModules(filepath.Join(dir, "lib", "modules", release, "kernel"), name); err != nil {
		return err
	}
	for file, data := range map[string][]byte{"vmlinuz-" + name: image, "vmlinux-" + name: elf} {
		if err := os.WriteFile(filepath.Join(b.guestFilesPath, file), data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(stamp, []byte(release+"\n"), 0o644)
}

// download gets the newest package of a prefix and unpacks it into dir.
func download(dir, prefix string) error {
	list, err := exec.Command("apt-cache", "search", "--names-only", "^"+prefix+".*cloud-amd64$").Output()
	if err != nil {
		return fmt.Errorf("apt-cache search: %w", err)
	}
	newest := ""
	for _, line := range strings.Split(string(list), "\n") {
		name, _, _ := strings.Cut(line, " ")
		if name != "" && (newest == "" || exec.Command("dpkg", "--compare-versions", name, "gt", newest).Run() == nil) {
			newest = name
		}
	}
	if newest == "" {
		return fmt.Errorf("no package in Debian's lists is called %s…cloud-amd64: run apt-get update", prefix)
	}
	if err := command(dir, "apt-get", "download", "-qq", newest); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, newest+"_*.deb"))
	if err != nil || len(debs) == 0 {
		return fmt.Errorf("apt-get download left no package: %v", err)
	}
	if err := command(dir, "dpkg", "-x", debs[0], "."); err != nil {
		return err
	}
	return os.Remove(debs[0])
}

// unpackModules decompresses the modules that are used. One that a kernel has built in, or does not have, is left out.
func (b *bed) unpackModules(from, name string) error {
	for _, m := range append(append([]string(nil), guestModules...), outerModules...) {
		data, err := readModule(filepath.Join(from, m+".ko"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		to := filepath.Join(b.guestFilesPath, name, filepath.Base(m)+".ko")
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func readModule(path string) ([]byte, error) {
	if data, err := os.ReadFile(path); err == nil {
		return data, nil
	}
	if _, err := os.Stat(path + ".xz"); err != nil {
		return nil, err
	}
	return exec.Command("xz", "-dc", path+".xz").Output()
}

// fetchLimit is how long one step of getting packages may take.
const fetchLimit = 8 * time.Minute

// command runs a program and shows its output only if it fails.
func command(dir, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	if strings.HasPrefix(name, "apt-get") || slices.Contains(args, "apt-get") {
		args = append(args, "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1")
	}
	c := exec.CommandContext(ctx, name, args...)
	c.WaitDelay = time.Second
	c.Dir = dir
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return nil
}
