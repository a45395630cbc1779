package cluster

import (
	"fmt"

	"github.com/cellvisor/cellvisor/sim/kernel"
)

// Retell plays the world of a seed, which begins with a network that loses nothing. If that fails, it plays it again to tell the end of its story.
func Retell(seed uint64, play func(*kernel.World) error) error {
	tell := func(tracing bool) error {
		k := kernel.New(seed, kernel.Reliable())
		k.Tracing = tracing
		err := play(k)
		if err != nil && tracing {
			err = fmt.Errorf("%w\n%s", err, k.Trace())
		}
		return err
	}
	if tell(false) == nil {
		return nil
	}
	return tell(true)
}
