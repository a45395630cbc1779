package cells

import (
	"maps"
	"slices"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

// Bounds on what the registry holds: a snapshot of it must fit into one message between servers.
const (
	MaxServers  = 256
	MaxVMs      = 1024
	MaxVCPUs    = 1024
	MaxArgBytes = 4096
	MaxOptions  = 16

	MaxSnapshotBytes = 15 << 20 // with what is around it, one message
	MaxStateBytes    = 12 << 20 // at which no VM is taken in any more; running ones may still change

	DefaultWeight = 100 // of a VM's share of time on the slots
	MaxWeight     = 10_000
)

// CheckName tells whether a name of a server, cell or VM is well formed: 1 to 63 letters, digits, dashes, dots and underscores, the first
// a letter or digit. what names the thing in the fault.
func CheckName(what, name string) *Fault {
	if name == "" {
		return faultf(CodeInvalid, "%s name is empty", what)
	}
	if len(name) > 63 {
		return faultf(CodeInvalid, "%s name %q… has %d characters, at most 63", what, name[:16], len(name))
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return faultf(CodeInvalid, "%s name %q has a character that is not allowed (%q): use letters, digits, '-', '_' and '.', and begin with a letter or digit",
				what, name, c)
		}
	}
	return nil
}

func checkInfo(info *ServerInfo) *Fault {
	if fault := CheckName("server", string(info.Name)); fault != nil {
		return fault
	}
	if info.Role != RoleWitness {
		if fault := CheckName("cell", string(info.Cell)); fault != nil {
			return fault
		}
	}
	switch {
	case info.Role == RoleWitness && info.Cell != "":
		return faultf(CodeInvalid, "server %s: a witness belongs to no cell", info.Name)
	case info.Role != RoleServer && info.Role != RoleWitness:
		return faultf(CodeInvalid, "server %s: role %q is neither %q nor %q", info.Name, clip(string(info.Role), 32), RoleServer, RoleWitness)
	case info.Process.Boot == "" || len(info.Process.Boot) > 40:
		return faultf(CodeInvalid, "server %s: its boot id has %d characters; 1 to 40 are allowed", info.Name, len(info.Process.Boot))
	case info.Slots < 0 || info.Slots > MaxVCPUs:
		return faultf(CodeInvalid, "server %s: %d slots; 0 to %d are allowed", info.Name, info.Slots, MaxVCPUs)
	case len(info.HostID) > 256 || len(info.Addrs.Peer) > 256 || len(info.Addrs.API) > 256 || len(info.Addrs.Gossip) > 256:
		return faultf(CodeInvalid, "server %s: its host id or an address exceeds 256 characters", info.Name)
	}
	return nil
}

func checkSpec(spec *VMSpec) *Fault {
	if fault := CheckName("vm", spec.Name); fault != nil {
		return fault
	}
	switch {
	case spec.VCPUs < 1 || spec.VCPUs > MaxVCPUs:
		return faultf(CodeInvalid, "vm %s: %d vCPUs; 1 to %d are allowed", spec.Name, spec.VCPUs, MaxVCPUs)
	case spec.MemoryBytes == 0 || spec.MemoryBytes%ident.PageSize != 0:
		return faultf(CodeInvalid, "vm %s: %d bytes of memory; it must be a multiple of %d, and not 0", spec.Name, spec.MemoryBytes, ident.PageSize)
	case (spec.Builtin == "") == (spec.PayloadSHA256 == ""):
		return faultf(CodeInvalid, "vm %s: it needs one payload, a built-in or a file", spec.Name)
	case spec.PayloadSHA256 != "" && (!hexOf(spec.PayloadSHA256, 64) || spec.PayloadServer == 0):
		return faultf(CodeInvalid, "vm %s: a payload file needs its SHA-256 as 64 hex digits and the server that holds it", spec.Name)
	case len(spec.Builtin) > 63 || len(spec.Args) > MaxArgBytes:
		return faultf(CodeInvalid, "vm %s: arguments of %d bytes; at most %d are allowed", spec.Name, len(spec.Args), MaxArgBytes)
	case spec.Weight < 1 || spec.Weight > MaxWeight:
		return faultf(CodeInvalid, "vm %s: weight %d; 1 to %d are allowed, and %d is usual", spec.Name, spec.Weight, MaxWeight, DefaultWeight)
	case strings.ContainsRune(spec.Args, 0):
		return faultf(CodeInvalid, "vm %s: arguments contain a NUL", spec.Name)
	case spec.Restart != "" && spec.Restart != RestartNo && spec.Restart != RestartAlways:
		return faultf(CodeInvalid, "vm %s: restart %q is neither %q nor %q", spec.Name, clip(spec.Restart, 32), RestartNo, RestartAlways)
	case spec.CrashLimit < 0 || spec.CrashLimit > MaxCrashLimit:
		return faultf(CodeInvalid, "vm %s: a crash limit of %d; 0 (none) to %d are allowed", spec.Name, spec.CrashLimit, MaxCrashLimit)
	case spec.OnLoss != OnLossStop && spec.OnLoss != OnLossTouch:
		return faultf(CodeInvalid, "vm %s: on-loss %q is neither %q nor %q", spec.Name, clip(string(spec.OnLoss), 32), OnLossStop, OnLossTouch)
	}
	if fault := checkProtect(spec); fault != nil {
		return fault
	}
	if fault := checkLinux(spec); fault != nil {
		return fault
	}
	if fault := checkDisks(spec); fault != nil {
		return fault
	}
	if len(spec.Options) > MaxOptions {
		return faultf(CodeInvalid, "vm %s: %d options; at most %d are allowed", spec.Name, len(spec.Options), MaxOptions)
	}
	for _, k := range slices.Sorted(maps.Keys(spec.Options)) {
		if len(k) > 63 || len(spec.Options[k]) > 255 {
			return faultf(CodeInvalid, "vm %s: option %q is too long: 63 bytes are allowed, and 255 for its value", spec.Name, clip(k, 63))
		}
	}
	for i, c := range spec.Span {
		for _, d := range spec.Span[:i] {
			if c == d {
				return faultf(CodeInvalid, "vm %s: cell %q is named twice in its span", spec.Name, clip(string(c), 64))
			}
		}
	}
	return nil
}

func hexOf(s string, digits int) bool {
	if len(s) != digits {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip shortens text from outside to at most max bytes, without cutting a character in two.
func clip(s string, max int) string {
	if len(s) <= max {
		return s
	}
	return strings.ToValidUTF8(s[:max], "") + "…"
}

func trimSpace(s string) string { return strings.TrimSpace(s) }

func join[T ~string](names []T) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ", ")
}
