package worker

import (
	"strconv"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// levelOf is what this part announces that it knows. The VM's option "older" names a part that is to be like one of a program from before levels, for tests of
// upgrades.
func levelOf(spec wire.WorkerSpec) wire.Level {
	if n, err := strconv.Atoi(spec.Options["older"]); err == nil && ident.Part(n) == spec.Part {
		return wire.LevelUnknown
	}
	return wire.LevelNow
}
