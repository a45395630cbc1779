package cells

import (
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// DiskCache says when a guest's write to a disk is durable.
type DiskCache string

// Choices of DiskCache.
const (
	CacheWriteback    DiskCache = "writeback"    // when the guest flushes
	CacheWritethrough DiskCache = "writethrough" // when the write is done
	CacheUnsafe       DiskCache = "unsafe"       // some time: a flush does nothing
)

// DiskSpec is a disk that a VM asks for.
type DiskSpec struct {
	Name     string      `json:"name"`              // of the disk, in the whole cluster
	Source   string      `json:"source,omitempty"`  // path of an image, on the server that is home when the disk is new; "" for an empty disk
	Bytes    ident.Bytes `json:"bytes,omitempty"`   // size of a new, empty disk; 0: as the image
	Mirrors  int         `json:"mirrors,omitempty"` // copies in other cells
	Cache    DiskCache   `json:"cache,omitempty"`   // "" means writeback
	ReadOnly bool        `json:"read_only,omitempty"`
}

// Bounds of disks.
const (
	MaxDisks       = 8 // of a VM
	MaxDiskBytes   = 16 << 40
	DiskBlockBytes = 4096 // a disk's size is a multiple of it
)

// checkDisks looks at the disks that a VM asks for.
func checkDisks(spec *VMSpec) *Fault {
	if len(spec.Disks) > MaxDisks {
		return faultf(CodeInvalid, "vm %s: %d disks; at most %d are allowed", spec.Name, len(spec.Disks), MaxDisks)
	}
	for i := range spec.Disks {
		d := &spec.Disks[i]
		if fault := CheckName("disk", d.Name); fault != nil {
			return fault
		}
		if d.Cache == "" {
			d.Cache = CacheWriteback
		}
		switch {
		case slices.ContainsFunc(spec.Disks[:i], func(o DiskSpec) bool { return o.Name == d.Name }):
			return faultf(CodeInvalid, "vm %s: disk %s is named twice", spec.Name, d.Name)
		case d.Source != "" && (!strings.HasPrefix(d.Source, "/") || len(d.Source) > 1024 || strings.ContainsRune(d.Source, 0)):
			return faultf(CodeInvalid, "vm %s: disk %s: %q is not an absolute path", spec.Name, d.Name, clip(d.Source, 64))
		case d.Bytes > MaxDiskBytes || d.Bytes%DiskBlockBytes != 0:
			return faultf(CodeInvalid, "vm %s: disk %s: size of %d bytes: a multiple of %d, and at most %s, is allowed", spec.Name, d.Name, d.Bytes, DiskBlockBytes, ident.Bytes(MaxDiskBytes))
		case d.Mirrors < 0 || d.Mirrors > MaxReplicas:
			return faultf(CodeInvalid, "vm %s: disk %s: %d mirrors; 0 to %d are allowed", spec.Name, d.Name, d.Mirrors, MaxReplicas)
		case spec.Protect == ProtectReplica && d.Mirrors > spec.Replicas:
			return faultf(CodeInvalid, "vm %s: disk %s: the mirrors of a protected vm are with its replicas: %d mirrors need --protect replica:%d, or none", spec.Name, d.Name, d.Mirrors, d.Mirrors)
		case !slices.Contains([]DiskCache{CacheWriteback, CacheWritethrough, CacheUnsafe}, d.Cache):
			return faultf(CodeInvalid, "vm %s: disk %s: cache %q is none of writeback, writethrough, unsafe", spec.Name, d.Name, clip(string(d.Cache), 32))
		}
	}
	return nil
}
