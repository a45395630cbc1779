package tui

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

var binaryUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// unitOf returns the index of the largest unit in which n is at least one.
func unitOf(n uint64) int {
	unit := 0
	for n >= 1<<10 && unit < len(binaryUnits)-1 {
		n >>= 10
		unit++
	}
	return unit
}

// inUnit formats n in a unit with one decimal where that says more than none.
func inUnit(n uint64, unit int) string {
	v := float64(n) / float64(uint64(1)<<(10*unit))
	s := strconv.FormatFloat(v, 'f', 1, 64)
	return strings.TrimSuffix(s, ".0")
}

// size formats a number of bytes: "512 MiB".
func size(n uint64) string {
	unit := unitOf(n)
	return inUnit(n, unit) + " " + binaryUnits[unit]
}

// sizePair formats a use and its limit in the unit of the limit: "0.5/2 GiB".
func sizePair(used, total uint64) string {
	unit := unitOf(total)
	return inUnit(used, unit) + "/" + inUnit(total, unit) + " " + binaryUnits[unit]
}

// count formats a number for a narrow column: "999", "12.3k", "4.5M".
func count(n uint64) string {
	if n < 10_000 {
		return strconv.FormatUint(n, 10)
	}
	v := float64(n)
	for _, unit := range []string{"k", "M", "G", "T", "P"} {
		v /= 1000
		if v < 999.95 {
			return strconv.FormatFloat(v, 'f', 1, 64) + unit
		}
	}
	return strconv.FormatFloat(v/1000, 'f', 1, 64) + "E"
}

// span formats a duration for people in at most two units: "850ms", "12s", "3m05s", "2h10m", "4d03h".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	case d < time.Hour:
		return pair(d, time.Minute, "m", time.Second, "s")
	case d < 24*time.Hour:
		return pair(d, time.Hour, "h", time.Minute, "m")
	}
	return pair(d, 24*time.Hour, "d", time.Hour, "h")
}

func pair(d, big time.Duration, bigUnit string, small time.Duration, smallUnit string) string {
	rest := strconv.FormatInt(int64(d%big/small), 10)
	if len(rest) < 2 {
		rest = "0" + rest
	}
	return strconv.FormatInt(int64(d/big), 10) + bigUnit + rest + smallUnit
}

// known says whether a stamp tells a time: both no stamp and the zero of the Unix clock mean that there is none.
func known(stamp *timestamppb.Timestamp) bool { return stamp.GetSeconds() != 0 }

// age is the time from a stamp to now; empty for no stamp.
func age(stamp *timestamppb.Timestamp, now time.Time) string {
	if !known(stamp) {
		return ""
	}
	return span(now.Sub(stamp.AsTime()))
}

// clock formats a time of day in the local zone.
func clock(stamp *timestamppb.Timestamp) string {
	if !known(stamp) {
		return ""
	}
	return stamp.AsTime().Local().Format("15:04:05.000")
}

// ratio formats "2/4".
func ratio[N uint32 | uint64 | int](a, b N) string {
	return strconv.FormatUint(uint64(a), 10) + "/" + strconv.FormatUint(uint64(b), 10)
}

func number[N uint32 | uint64 | int](n N) string { return strconv.FormatUint(uint64(n), 10) }

// numberOrDash hides a zero that means "not known".
func numberOrDash[N uint32 | uint64](n N) string {
	if n == 0 {
		return "-"
	}
	return number(n)
}

// vcpuSet formats vCPU indexes as ranges: "0-3,6".
func vcpuSet(set []uint32) string {
	var b strings.Builder
	for i := 0; i < len(set); {
		j := i
		for j+1 < len(set) && set[j+1] == set[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(number(set[i]))
		if j > i {
			b.WriteByte('-')
			b.WriteString(number(set[j]))
		}
		i = j + 1
	}
	return b.String()
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
