// Package linux turns a Linux kernel, its initial RAM disk and its command line into what a VM starts from, and describes the machine to
// it: memory map, ACPI tables, CPUID. It is pure: it looks at bytes and numbers, and the caller writes.
//
// Guest-physical memory:
//
//	0x0000_0500   descriptor table of the entry state
//	0x0000_6000   PVH start information, module list, memory map
//	0x0000_7000   boot_params ("zero page") of the 64-bit entry
//	0x0000_9000   page tables of the 64-bit entry: identity, 4 GiB
//	0x0002_0000   command line
//	0x0009_fc00   end of low memory
//	0x000e_0000   ACPI tables, RSDP first (reserved in the memory map)
//	0x000f_fff0   reset vector: resets the machine
//	0x0010_0000   memory; the kernel at the addresses that it asks for (16 MiB usually), the initial RAM disk at the top
//	0xc000_0000   PCI memory window (LowEnd: RAM ends here at the latest)
//	0xfec0_0000   I/O APIC
//	0xfee0_0000   local APICs
//	0xfffb_c000   KVM's own pages (real mode on old Intel processors)
//	0x1_0000_0000 memory beyond 3 GiB
//
// A kernel comes in two forms. An ELF vmlinux with a PVH note starts in 32-bit mode with paging off. A bzImage starts at its 64-bit entry
// and decompresses itself. When a bzImage's payload can be decompressed here and has a PVH note, it is: that is faster, and several
// times so where guests run slowly; the price is that the kernel lies where it was linked (no KASLR).
//
// The ACPI machine is a hardware-reduced one: no PIC, no PIT, no SCI; a power-management timer for clock calibration; sleep and reset
// registers. Local APICs are addressed physically, by FADT flag and by x2APIC, so that an interrupt names one vCPU wherever it runs.
package linux
