package cells

import (
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// LinuxSpec is what a Linux kernel, the VM's payload file, is started with.
type LinuxSpec struct {
	InitrdSHA256 string      `json:"initrd_sha256,omitempty"` // hash (hex) of the initial RAM disk, which the payload's server holds, too; "" for none
	InitrdBytes  ident.Bytes `json:"initrd_bytes,omitempty"`
	Cmdline      string      `json:"cmdline"`
	CPU          string      `json:"cpu"` // processor model, see CPUModels
}

// CPUModels are the processor models that a Linux guest can be shown.
var CPUModels = []string{"host", "x86-64-v2", "x86-64-v3"}

// Files lists the hashes of the files that the VM is started from.
func (s *VMSpec) Files() []string {
	var out []string
	if s.PayloadSHA256 != "" {
		out = append(out, s.PayloadSHA256)
	}
	if s.Linux != nil && s.Linux.InitrdSHA256 != "" {
		out = append(out, s.Linux.InitrdSHA256)
	}
	return out
}

// MaxCmdlineBytes bounds a Linux guest's command line: the kernel takes 2047 bytes, of which the machine may need some.
const MaxCmdlineBytes = 1984

func checkLinux(spec *VMSpec) *Fault {
	l := spec.Linux
	if l == nil {
		return nil
	}
	switch {
	case spec.PayloadSHA256 == "":
		return faultf(CodeInvalid, "vm %s: a Linux guest needs a kernel file", spec.Name)
	case l.InitrdSHA256 != "" && !hexOf(l.InitrdSHA256, 64):
		return faultf(CodeInvalid, "vm %s: an initial RAM disk needs its SHA-256 as 64 hex digits", spec.Name)
	case len(l.Cmdline) > MaxCmdlineBytes:
		return faultf(CodeInvalid, "vm %s: kernel command line of %d bytes; at most %d are allowed", spec.Name, len(l.Cmdline), MaxCmdlineBytes)
	case strings.ContainsRune(l.Cmdline, 0):
		return faultf(CodeInvalid, "vm %s: the kernel command line contains a NUL", spec.Name)
	case !slices.Contains(CPUModels, l.CPU):
		return faultf(CodeInvalid, "vm %s: processor model %q is not known: use %s", spec.Name, clip(l.CPU, 32), strings.Join(CPUModels, ", "))
	case spec.Args != "":
		return faultf(CodeInvalid, "vm %s: a Linux guest has a command line, not arguments", spec.Name)
	case len(spec.Span) > 1:
		return faultf(CodeInvalid, "vm %s: a Linux guest lives on one server: let it span one cell at most", spec.Name)
	case spec.Protect == ProtectReplica:
		return faultf(CodeInvalid, "vm %s: a Linux guest cannot be protected", spec.Name)
	}
	return nil
}
