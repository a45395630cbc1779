package linux

import (
	"fmt"
	"math/bits"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// CPUIDEntry is one leaf, or subleaf, of what a guest sees of its processor.
type CPUIDEntry = gokvm.CPUIDEntry2

// Model is which features of the host's processor a guest sees.
type Model string

// The models. A VM can move only to servers that have everything its model shows; the levels are those of the x86-64 psABI.
const (
	ModelHost Model = "host"      // all that KVM offers here
	ModelV2   Model = "x86-64-v2" // up to SSE4.2 and POPCNT
	ModelV3   Model = "x86-64-v3" // and AVX2, BMI, FMA, MOVBE
)

// Feature bits that are set or cleared here, by leaf and register.
const (
	ecx1Monitor     = 1 << 3
	ecx1FMA         = 1 << 12
	ecx1X2APIC      = 1 << 21
	ecx1MOVBE       = 1 << 22
	ecx1TSCDeadline = 1 << 24
	ecx1XSAVE       = 1 << 26
	ecx1OSXSAVE     = 1 << 27
	ecx1AVX         = 1 << 28
	ecx1F16C        = 1 << 29
	ecx1Hypervisor  = 1 << 31
	edx1HTT         = 1 << 28

	edx87InvariantTSC = 1 << 8

	ebx7BMI1 = 1 << 3
	ebx7AVX2 = 1 << 5
	ebx7BMI2 = 1 << 8

	// Beyond the levels, what every host of the last ten years has and a kernel likes to see.
	ebx7Common   = 1<<0 | 1<<1 | 1<<7 | 1<<9 | 1<<18 | 1<<19 | 1<<20 // FSGSBASE TSC_ADJUST SMEP ERMS RDSEED ADX SMAP
	ecx1V2Drop   = ecx1FMA | ecx1MOVBE | ecx1XSAVE | ecx1OSXSAVE | ecx1AVX | ecx1F16C
	ecx81V2      = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<8 // LAHF CMP_LEGACY CR8_LEGACY LZCNT 3DNOWPREFETCH
	hypervisorID = 0x40000000
)

// Topology says which vCPU of how many a CPUID is for.
type Topology struct {
	VCPU, VCPUs int
	TSCDeadline bool // local APIC timers can be armed by the time stamp counter
	ConstantTSC bool // the time stamp counter is announced as constant, whatever KVM says
}

// CPUID makes what one vCPU shows of itself from what KVM supports on this host. All vCPUs are cores of one package; a vCPU's APIC ID is its number.
//
// KVM's signature is shown, since a kernel that is not told that it is virtual does not use x2APIC without interrupt remapping, but no
// paravirtual feature is: kvmclock, PV EOI, steal time and asynchronous page faults make the host's kernel write guest memory behind
// the page protocol's back.
func CPUID(supported []CPUIDEntry, model Model, t Topology) ([]CPUIDEntry, error) {
	switch model {
	case ModelHost, ModelV2, ModelV3, "":
	default:
		return nil, fmt.Errorf("unknown processor model %q: use %s, %s or %s", model, ModelHost, ModelV2, ModelV3)
	}
	var out []CPUIDEntry
	for _, e := range supported {
		if e.Function&0xf0000000 == hypervisorID || e.Function == 0xb || e.Function == 0x1f {
			continue
		}
		if keep := shape(&e, model, t); keep {
			out = append(out, e)
		}
	}
	shift := uint32(bits.Len(uint(t.VCPUs - 1)))
	const significantIndex = 1
	const levelThread, levelCore = 1, 2
	return append(out,
		CPUIDEntry{Function: 0xb, Index: 0, Flags: significantIndex, Eax: 0, Ebx: 1, Ecx: levelThread << 8, Edx: uint32(t.VCPU)},
		CPUIDEntry{Function: 0xb, Index: 1, Flags: significantIndex, Eax: shift, Ebx: uint32(t.VCPUs), Ecx: levelCore<<8 | 1, Edx: uint32(t.VCPU)},
		CPUIDEntry{Function: 0xb, Index: 2, Flags: significantIndex, Ecx: 2, Edx: uint32(t.VCPU)},
		CPUIDEntry{Function: hypervisorID, Eax: hypervisorID + 1, Ebx: 0x4b4d564b, Ecx: 0x564b4d56, Edx: 0x4d}, // "KVMKVMKVM"
		CPUIDEntry{Function: hypervisorID + 1},
	), nil
}

// shape edits one leaf; it returns false for one that is not shown.
func shape(e *CPUIDEntry, model Model, t Topology) bool {
	id, n := uint32(t.VCPU), uint32(t.VCPUs)
	switch e.Function {
	case 0x0:
		e.Eax = max(e.Eax, 0xb)
	case 0x1:
		e.Ebx = e.Ebx&0x0000ffff | n<<16 | id<<24
		e.Ecx = e.Ecx&^(ecx1Monitor|ecx1OSXSAVE|ecx1TSCDeadline) | ecx1X2APIC | ecx1Hypervisor
		e.Edx &^= edx1HTT
		if t.TSCDeadline {
			e.Ecx |= ecx1TSCDeadline
		}
		if n > 1 {
			e.Edx |= edx1HTT
		}
		if model == ModelV2 {
			e.Ecx &^= ecx1V2Drop
		}
	case 0x4:
		// Intel's caches: all private to a core, but the last level, which the package shares.
		e.Eax = e.Eax&0x00003fff | (n-1)<<26
		if e.Eax>>5&7 >= 3 {
			e.Eax |= (n - 1) << 14
		}
	case 0x7:
		return shape7(e, model)
	case 0xd:
		return model != ModelV2
	case 0xa, 0x12, 0x14: // performance counters, enclaves, processor trace: not carried over in a move
		return false
	case 0x80000001:
		if model == ModelV2 {
			e.Ecx &= ecx81V2
		}
	case 0x80000007:
		if t.ConstantTSC {
			e.Edx |= edx87InvariantTSC
		}
	case 0x80000008:
		e.Ecx = uint32(bits.Len(uint(n-1)))<<12 | n - 1
	case 0x8000001d: // AMD's caches
		e.Eax = e.Eax &^ (0xfff << 14)
		if e.Eax>>5&7 >= 3 {
			e.Eax |= (n - 1) << 14
		}
	case 0x8000001e:
		e.Eax, e.Ebx, e.Ecx = id, id, 0
	}
	return true
}

// shape7 edits the structured extended features.
func shape7(e *CPUIDEntry, model Model) bool {
	switch {
	case model != ModelV2 && model != ModelV3:
		return true
	case e.Index > 0:
		return false
	}
	keep := uint32(ebx7Common)
	if model == ModelV3 {
		keep |= ebx7AVX2 | ebx7BMI1 | ebx7BMI2
	}
	e.Eax, e.Ebx, e.Ecx, e.Edx = 0, e.Ebx&keep, 0, 0
	return true
}
