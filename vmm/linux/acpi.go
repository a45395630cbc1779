package linux

import (
	"encoding/binary"
)

// Ports of the machine's fixed hardware, all announced by ACPI.
const (
	SleepControlPort = 0x600 // 8 bits: sleep type and enable, as ACPI's sleep control register
	SleepStatusPort  = 0x601
	ResetPort        = 0x602 // 8 bits: ResetValue resets the machine
	PMTimerPort      = 0x608 // 32 bits: counts at PMTimerHz
	SerialPort       = 0x3f8

	ResetValue  = 0x0f
	SleepTypeS5 = 5 // in \_S5
	PMTimerHz   = 3579545
	SerialIRQ   = 4
)

// ACPI builds the tables that describe a machine with vcpus vCPUs, to be written at their fixed place: the RSDP comes first.
func ACPI(vcpus int) []byte {
	const rsdpBytes, align = 36, 64
	out := make([]byte, align)
	place := func(table []byte) uint64 {
		at := acpiAddr + uint64(len(out))
		out = append(out, table...)
		for len(out)%align != 0 {
			out = append(out, 0)
		}
		return at
	}
	dsdt := place(table("DSDT", 2, dsdtAML()))
	fadt := place(table("FACP", 6, fadtBody(dsdt)))
	madt := place(table("APIC", 4, madtBody(vcpus)))
	var pointers []byte
	pointers = binary.LittleEndian.AppendUint64(pointers, fadt)
	pointers = binary.LittleEndian.AppendUint64(pointers, madt)
	xsdt := place(table("XSDT", 1, pointers))

	rsdp := out[:rsdpBytes]
	copy(rsdp, "RSD PTR ")
	copy(rsdp[9:], "CELLVI")
	rsdp[15] = 2
	binary.LittleEndian.PutUint32(rsdp[20:], rsdpBytes)
	binary.LittleEndian.PutUint64(rsdp[24:], xsdt)
	rsdp[8] = checksum(rsdp[:20])
	rsdp[32] = checksum(rsdp)
	return out
}

// table puts a system description table's header before its body.
func table(signature string, revision byte, body []byte) []byte {
	const headerBytes = 36
	b := make([]byte, headerBytes, headerBytes+len(body))
	copy(b, signature)
	b[8] = revision
	copy(b[10:], "CELLVI")
	copy(b[16:], "CELLVISR")
	binary.LittleEndian.PutUint32(b[24:], 1)
	copy(b[28:], "CELV")
	binary.LittleEndian.PutUint32(b[32:], 1)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	b[9] = checksum(b)
	return b
}

// checksum is the byte that makes b, in which it is still zero, sum to zero.
func checksum(b []byte) byte {
	var sum byte
	for _, x := range b {
		sum += x
	}
	return -sum
}

// fadtBody is the Fixed ACPI Description Table, revision 6, of a hardware-reduced machine. Offsets are the table's, header included.
func fadtBody(dsdt uint64) []byte {
	const (
		header = 36
		size   = 276

		flagWBINVD       = 1 << 0
		flagPowerButton  = 1 << 4 // not fixed hardware
		flagSleepButton  = 1 << 5
		flagResetReg     = 1 << 10
		flagPhysicalAPIC = 1 << 19 // interrupts name one CPU: what a vCPU on another server needs
		flagHWReduced    = 1 << 20

		archNoVGA  = 1 << 2
		archNoASPM = 1 << 4
	)
	b := make([]byte, size-header)
	le := binary.LittleEndian
	at := func(offset int) []byte { return b[offset-header:] }
	register := func(offset int, port uint64, bits, access byte) {
		const systemIO = 1
		g := at(offset)
		g[0], g[1], g[3] = systemIO, bits, access
		le.PutUint64(g[4:], port)
	}
	le.PutUint32(at(40), uint32(dsdt))
	le.PutUint32(at(76), PMTimerPort)
	at(91)[0] = 4 // bytes of the timer's register
	le.PutUint16(at(109), archNoVGA|archNoASPM)
	le.PutUint32(at(112), flagWBINVD|flagPowerButton|flagSleepButton|flagResetReg|flagPhysicalAPIC|flagHWReduced)
	register(116, ResetPort, 8, 1)
	at(128)[0] = ResetValue
	at(131)[0] = 3 // minor revision: 6.3
	le.PutUint64(at(140), dsdt)
	register(208, PMTimerPort, 32, 3)
	register(244, SleepControlPort, 8, 1)
	register(256, SleepStatusPort, 8, 1)
	copy(at(268), "CELLVISR")
	return b
}

// madtBody lists the local APICs, whose IDs are the vCPUs' numbers, and the I/O APIC.
func madtBody(vcpus int) []byte {
	const localAPICAddr = 0xfee00000
	le := binary.LittleEndian
	b := make([]byte, 8)
	le.PutUint32(b, localAPICAddr)
	for i := range vcpus {
		const enabled = 1
		b = append(b, 0, 8, byte(i), byte(i), enabled, 0, 0, 0)
	}
	ioapic := []byte{1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le.PutUint32(ioapic[4:], IOAPICAddr)
	return append(b, ioapic...)
}

// dsdtAML says what cannot be found by probing: the PCI root and its windows, the serial port, the clock, and how to switch off.
func dsdtAML() []byte {
	pci := amlDevice("PCI0",
		amlName("_HID", amlEISA("PNP0A03")),
		amlName("_UID", amlInt(0)),
		amlName("_BBN", amlInt(0)),
		amlName("_CRS", amlResources(
			amlWordRange(2, 0, 0, 0),           // bus 0
			amlIO(0xcf8, 8),                    // configuration ports
			amlWordRange(1, 3, 0x1000, 0xffff), // I/O window, of which nothing is used
			amlMemoryRange(LowEnd, PCIEnd-1),
		)))
	serial := amlDevice("COM1",
		amlName("_HID", amlEISA("PNP0501")),
		amlName("_UID", amlInt(1)),
		amlName("_CRS", amlResources(amlIO(SerialPort, 8), amlIRQ(SerialIRQ))))
	clock := amlDevice("RTC0",
		amlName("_HID", amlEISA("PNP0B00")),
		amlName("_CRS", amlResources(amlIO(0x70, 2))))
	off := amlName("_S5_", amlPackage(amlInt(SleepTypeS5), amlInt(SleepTypeS5), amlInt(0), amlInt(0)))
	return append(amlScope("_SB_", pci, serial, clock), off...)
}
