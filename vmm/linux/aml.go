package linux

import "encoding/binary"

// Encoders for the few terms of ACPI Machine Language that the DSDT needs: ACPI 6.3, chapter 20; resources: chapter 6.4.

func amlName(name string, value []byte) []byte {
	return append(append([]byte{0x08}, name...), value...)
}

func amlScope(name string, terms ...[]byte) []byte {
	return append([]byte{0x10}, amlSized(append([]byte("\\"+name), amlJoin(terms)...))...)
}

func amlDevice(name string, terms ...[]byte) []byte {
	return append([]byte{0x5b, 0x82}, amlSized(append([]byte(name), amlJoin(terms)...))...)
}

func amlPackage(elements ...[]byte) []byte {
	return append([]byte{0x12}, amlSized(append([]byte{byte(len(elements))}, amlJoin(elements)...))...)
}

func amlInt(v uint32) []byte {
	switch {
	case v == 0:
		return []byte{0x00}
	case v == 1:
		return []byte{0x01}
	case v <= 0xff:
		return []byte{0x0a, byte(v)}
	}
	return binary.LittleEndian.AppendUint32([]byte{0x0c}, v)
}

// amlEISA compresses a seven-character EISA ID: three letters of five bits, four hexadecimal digits, big endian.
func amlEISA(id string) []byte {
	v := uint32(id[0]-'A'+1)<<26 | uint32(id[1]-'A'+1)<<21 | uint32(id[2]-'A'+1)<<16
	for i, shift := 3, 12; i < 7; i, shift = i+1, shift-4 {
		digit := uint32(id[i] - '0')
		if id[i] >= 'A' {
			digit = uint32(id[i]-'A') + 10
		}
		v |= digit << shift
	}
	return binary.BigEndian.AppendUint32([]byte{0x0c}, v)
}

// amlSized puts the package length, which counts its own bytes, before body.
func amlSized(body []byte) []byte {
	n := len(body)
	switch {
	case n+1 < 1<<6:
		return append([]byte{byte(n + 1)}, body...)
	case n+2 < 1<<12:
		n += 2
		return append([]byte{0x40 | byte(n&0xf), byte(n >> 4)}, body...)
	}
	n += 3
	return append([]byte{0x80 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}, body...)
}

func amlJoin(parts [][]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// amlResources makes a buffer of resource descriptors, closed by the end tag.
func amlResources(descriptors ...[]byte) []byte {
	data := append(amlJoin(descriptors), 0x79, 0x00)
	return append([]byte{0x11}, amlSized(append(amlInt(uint32(len(data))), data...))...)
}

func amlIO(port uint16, length byte) []byte {
	b := []byte{0x47, 1, 0, 0, 0, 0, 1, length}
	binary.LittleEndian.PutUint16(b[2:], port)
	binary.LittleEndian.PutUint16(b[4:], port)
	return b
}

// amlIRQ is an edge-triggered, active-high interrupt line.
func amlIRQ(line int) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<line)
}

// rangeFixed: the range's ends are fixed.
const rangeFixed = 0x0c

// amlWordRange is a word address space: kind 1 is I/O, 2 is bus numbers.
func amlWordRange(kind, specific byte, first, last uint16) []byte {
	b := []byte{0x88, 0x0d, 0, kind, rangeFixed, specific}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// amlMemoryRange is a doubleword address space of writable memory that is not cached.
func amlMemoryRange(first, last uint32) []byte {
	b := []byte{0x87, 0x17, 0, 0, rangeFixed, 1}
	for _, v := range []uint32{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}
