package main

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
)

const diskHelp = `
Disks (--disk, repeatable): FILE[,size=SIZE][,mirror=N][,cache=writeback|writethrough|unsafe][,readonly]
  FILE without a slash names a disk that the cluster keeps; it is made when it is new, of the given size.
  FILE with a slash is an image on the server that becomes the VM's home, used in place; the disk has the file's name. With a size it is made
  if there is none.
  mirror=N keeps a copy in each of N other cells: a flush by the guest is done when all of them have it, and a VM that is started after the loss of
  its home's cell finds it. With --protect replica:K the copies are with the replicas, and K must be N or more.
The disk outlives its VM: another one may use it once the VM has ended. The guest sees virtio-blk devices on its PCI bus, in this order.`

// parseDisk reads the value of one --disk.
func parseDisk(text string) (*api.Disk, error) {
	words := strings.Split(text, ",")
	file := words[0]
	if file == "" {
		return nil, usagef("--disk %q: name a disk or an image file first", text)
	}
	d := &api.Disk{Name: file}
	if strings.Contains(file, "/") {
		path, err := filepath.Abs(file)
		if err != nil {
			return nil, usagef("--disk %s: %w", text, err)
		}
		d.Name, d.Source = filepath.Base(path), path
	}
	for _, word := range words[1:] {
		if err := setDisk(d, word); err != nil {
			return nil, usagef("--disk %s: %w", text, err)
		}
	}
	return d, nil
}

// setDisk takes one option of a --disk.
func setDisk(d *api.Disk, word string) error {
	key, value, given := strings.Cut(word, "=")
	switch {
	case key == "readonly" && !given:
		d.ReadOnly = true
	case key == "size" && given:
		size, err := config.ParseSize(value)
		if err != nil {
			return err
		}
		d.SizeBytes = uint64(size)
	case key == "mirror" && given:
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil {
			return usagef("mirror=%s is not a number of mirrors", value)
		}
		d.Mirrors = uint32(n)
	case key == "cache" && (value == "writeback" || value == "writethrough" || value == "unsafe"):
		d.Cache = value
	case key == "cache":
		return usagef("cache=%s is none of writeback, writethrough, unsafe", value)
	default:
		return usagef("%q is none of size=SIZE, mirror=N, cache=MODE, readonly", word)
	}
	return nil
}
