package cells

import (
	"fmt"
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
	Nets         []NetSpec   `json:"nets,omitempty"`
}

// NetSpec is a network card: on a segment of the built-in switch, or on a TAP interface of the server that the VM runs on.
type NetSpec struct {
	Switch string `json:"switch,omitempty"`
	TAP    string `json:"tap,omitempty"`
	MAC    string `json:"mac,omitempty"` // as asked for; "" means that of MAC
}

// MaxNets bounds a VM's network cards.
const MaxNets = 8

// MAC is the address of a VM's card n unless another was asked for: locally administered, and of no other VM of the cluster before there were 2^24.
func (v *VM) MAC(n int) string {
	if mac := v.Spec.Linux.Nets[n].MAC; mac != "" {
		return mac
	}
	return fmt.Sprintf("02:43:%02x:%02x:%02x:%02x", byte(v.ID>>16), byte(v.ID>>8), byte(v.ID), n)
}

func checkNets(spec *VMSpec) *Fault {
	nets := spec.Linux.Nets
	if len(nets) > MaxNets {
		return faultf(CodeInvalid, "vm %s: %d network cards; at most %d are allowed", spec.Name, len(nets), MaxNets)
	}
	for i, n := range nets {
		switch {
		case (n.Switch == "") == (n.TAP == ""):
			return faultf(CodeInvalid, "vm %s: network card %d is plugged into either a switch or a TAP interface", spec.Name, i)
		case n.TAP != "" && (len(n.TAP) > 15 || strings.ContainsAny(n.TAP, "/ \x00\n")):
			return faultf(CodeInvalid, "vm %s: %q is no name of a TAP interface", spec.Name, clip(n.TAP, 32))
		case n.MAC != "" && !validMAC(n.MAC):
			return faultf(CodeInvalid, "vm %s: %q is no address of a network card: use one like 02:00:00:00:00:01", spec.Name, clip(n.MAC, 32))
		}
		if n.Switch != "" {
			if fault := CheckName("switch", n.Switch); fault != nil {
				return fault
			}
		}
		for _, o := range nets[:i] {
			if o.Switch == n.Switch && o.TAP == n.TAP {
				return faultf(CodeInvalid, "vm %s: two network cards are plugged into %s%s", spec.Name, n.Switch, n.TAP)
			}
		}
	}
	return nil
}

// validMAC tells whether text is six bytes in hex, of a single card.
func validMAC(text string) bool {
	if len(text) != 17 {
		return false
	}
	for i := range len(text) {
		c := text[i]
		if i%3 == 2 && c != ':' || i%3 != 2 && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return strings.IndexByte("02468ace", text[1]) >= 0 && text != "00:00:00:00:00:00"
}

// CPUModels are the processor models that a Linux guest can be shown.
var CPUModels = []string{"host", "x86-64-v2", "x86-64-v3"}

// Files lists the hashes of the files that the VM is started from.
func (s *VMSpec) Files() []string {
	var out []string
	if s.PayloadSHA256 != "" {
		out = append(out, s.PayloadSHA256)
	}
	if s.Saved != nil {
		out = append(out, s.Saved.SHA256)
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
	case spec.Protect == ProtectReplica && slices.ContainsFunc(l.Nets, func(n NetSpec) bool { return n.TAP != "" }):
		return faultf(CodeInvalid, "vm %s: a Linux guest with a card on a TAP interface cannot be protected: use the built-in switch", spec.Name)
	}
	return checkNets(spec)
}

// checkParts tells why a VM cannot lie on n servers.
func checkParts(spec *VMSpec, n int) *Fault {
	if spec.Linux != nil && spec.Protect == ProtectReplica && n > 1 {
		return faultf(CodeInvalid, "vm %s: a Linux guest over %d servers cannot be protected: place it on one", spec.Name, n)
	}
	return nil
}
