package lapic

// Shorthand is a destination that needs no address.
type Shorthand uint8

// The shorthands.
const (
	NoShorthand Shorthand = iota
	Self
	AllIncludingSelf
	AllExcludingSelf
)

// Broadcast addresses.
const (
	broadcastX2 = 0xffffffff
	broadcast8  = 0xff
)

// IPI is an interrupt on its way, with the address that it was sent to.
type IPI struct {
	Dest     uint32
	Wide     bool // Dest has 32 bits, as in x2APIC mode; otherwise 8
	Logical  bool
	Short    Shorthand
	Delivery Delivery
	Vector   byte
	Level    bool // triggered by level
	Assert   bool
}

// Bits of the interrupt command register.
const (
	icrLogical  = 1 << 11
	icrStatus   = 1 << 12
	icrAssert   = 1 << 14
	icrLevel    = 1 << 15
	icrReadOnly = icrStatus | 1<<13 | 3<<16 | 0xfff<<20
)

// send sends what the interrupt command register says.
func (a *APIC) send() Effect {
	i := IPI{
		Logical: a.ICR&icrLogical != 0, Short: Shorthand(a.ICR >> 18 & 3), Delivery: Delivery(a.ICR >> 8 & 7), Vector: byte(a.ICR),
		Level: a.ICR&icrLevel != 0, Assert: a.ICR&icrAssert != 0,
	}
	if i.Wide = a.Mode() == X2APIC; i.Wide {
		i.Dest = uint32(a.ICR >> 32)
	} else {
		i.Dest = uint32(a.ICR >> 56)
	}
	return a.checked(i)
}

// checked refuses to send vectors that there are not.
func (a *APIC) checked(i IPI) Effect {
	if (i.Delivery == Fixed || i.Delivery == LowestPriority) && i.Vector < firstVector {
		a.raiseError(errorSendVector)
		return Effect{}
	}
	return Effect{IPI: i, Send: true}
}

// MSI decodes a message-signalled interrupt.
func MSI(addr uint64, data uint32) IPI {
	return IPI{
		Dest: uint32(addr >> 12 & 0xff), Logical: addr>>2&1 != 0, Delivery: Delivery(data >> 8 & 7), Vector: byte(data),
		Level: data>>15&1 != 0, Assert: true,
	}
}

// Message is what each target gets. The level that ends an INIT is none: it has synchronized arbitration IDs on old processors.
func (i IPI) Message() (Message, bool) {
	if i.Delivery == INIT && i.Level && !i.Assert {
		return 0, false
	}
	m := NewMessage(i.Delivery, i.Vector)
	if i.Level && i.Delivery == Fixed && i.Short == NoShorthand {
		m |= messageLevel
	}
	return m, true
}

// Name is what a local APIC is addressed by.
type Name struct {
	ID, LDR, DFR uint32
	Mode         Mode
}

// Name returns the APIC's name.
func (a *APIC) Name() Name { return Name{a.ID, a.LDR, a.DFR, a.Mode()} }

// x2LDR is the logical name in x2APIC mode: cluster of 16, and a bit in it.
func x2LDR(id uint32) uint32 { return id>>4<<16 | 1<<(id&15) }

// matches tells whether an address names the APIC.
func (n Name) matches(i IPI) bool {
	if n.Mode == Off {
		return false
	}
	if i.Wide && i.Dest == broadcastX2 || !i.Wide && i.Dest == broadcast8 {
		return true
	}
	switch {
	case !i.Logical:
		return i.Dest == n.ID
	case n.Mode == X2APIC:
		own := x2LDR(n.ID)
		return i.Dest>>16 == own>>16 && i.Dest&own&0xffff != 0
	case i.Dest > 0xff:
		return false
	}
	const flat = 0xf
	own := n.LDR >> 24
	if n.DFR>>28 == flat {
		return i.Dest&own != 0
	}
	return i.Dest>>4 == own>>4 && i.Dest&own&0xf != 0
}

// Targets appends the indices of the APICs that an interrupt is for. from is the sender's index; a device has none, and uses no shorthand.
func (i IPI) Targets(names []Name, from int, out []int) []int {
	first := len(out)
	for k, n := range names {
		var is bool
		switch i.Short {
		case Self:
			is = k == from
		case AllIncludingSelf:
			is = true
		case AllExcludingSelf:
			is = k != from
		default:
			is = n.matches(i)
		}
		if is {
			out = append(out, k)
		}
	}
	if found := out[first:]; i.Delivery == LowestPriority && len(found) > 1 {
		out = append(out[:first], found[int(i.Vector)%len(found)])
	}
	return out
}
