package config

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cellvisor/cellvisor/ident"
)

var sizeUnits = map[string]ident.Bytes{
	"": 1, "b": 1,
	"k": ident.KiB, "kb": ident.KiB, "kib": ident.KiB,
	"m": ident.MiB, "mb": ident.MiB, "mib": ident.MiB,
	"g": ident.GiB, "gb": ident.GiB, "gib": ident.GiB,
	"t": ident.GiB << 10, "tb": ident.GiB << 10, "tib": ident.GiB << 10,
}

// ParseSize reads a size such as "512MiB", "4G" or "1048576". Units are powers of 1024, as operators of virtual machines expect.
func ParseSize(text string) (ident.Bytes, error) {
	s := strings.TrimSpace(text)
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(s[i:]))]
	if i == 0 || !ok {
		return 0, fmt.Errorf("size %q must be a number with a unit, such as 64MiB or 4GiB", text)
	}
	if n, err := strconv.ParseUint(s[:i], 10, 64); err == nil {
		if n > uint64(1<<62)/uint64(unit) {
			return 0, fmt.Errorf("size %q is too large", text)
		}
		return ident.Bytes(n) * unit, nil
	}
	f, err := strconv.ParseFloat(s[:i], 64)
	if err != nil {
		return 0, fmt.Errorf("size %q must be a number with a unit, such as 64MiB or 4GiB", text)
	}
	if f*float64(unit) > 1<<62 {
		return 0, fmt.Errorf("size %q is too large", text)
	}
	return ident.Bytes(f * float64(unit)), nil
}

// AvailableMemory returns what the kernel says can be used without swapping, or 1 GiB if it does not say.
func AvailableMemory() ident.Bytes {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return ident.GiB
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				return ident.Bytes(n) * ident.KiB
			}
		}
	}
	return ident.GiB
}
