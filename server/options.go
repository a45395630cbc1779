package server

import (
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// Bounds of a VM's options that its workers would take for the default beyond them. Options that are not known here are for tests and measurements, and are
// passed on as they are.
const (
	maxOptionTime     = time.Second
	maxOptionPatience = 64
)

// checkOptions says which option of a VM makes no sense, and what would.
func checkOptions(spec *cells.VMSpec) error {
	for _, key := range []string{"window", "stint"} {
		text, given := spec.Options[key]
		if !given {
			continue
		}
		if d, err := time.ParseDuration(text); err != nil || d < 0 || d > maxOptionTime {
			return status.Errorf(codes.InvalidArgument, "vm %s: option %s=%.32s: a time with its unit from 0s to %v is allowed, as 200us or 2ms", spec.Name, key, text, maxOptionTime)
		}
	}
	if text, given := spec.Options["patience"]; given {
		if n, err := strconv.Atoi(text); err != nil || n < 1 || n > maxOptionPatience {
			return status.Errorf(codes.InvalidArgument, "vm %s: option patience=%.32s: a whole number from 1 to %d is allowed", spec.Name, text, maxOptionPatience)
		}
	}
	if text, given := spec.Options[optionImage]; given && text != imageOwn {
		return status.Errorf(codes.InvalidArgument, "vm %s: option %s=%.32s: only %s is allowed", spec.Name, optionImage, text, imageOwn)
	}
	if text, given := spec.Options[wire.OptionLogMax]; given {
		if n, err := config.ParseSize(text); err != nil || n < wire.LogMaxLeast || n > wire.LogMaxMost {
			return status.Errorf(codes.InvalidArgument, "vm %s: logs of at most %.32s: a size from %s to %s is allowed, as 64MiB", spec.Name, text, ident.Bytes(wire.LogMaxLeast), ident.Bytes(wire.LogMaxMost))
		}
	}
	return nil
}
