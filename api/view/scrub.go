package view

import "github.com/cellvisor/cellvisor/api"

// Scrub tells what the checks of a worker's copies of disks have come to.
type Scrub struct {
	Passes   uint64 `json:"passes"`
	Checking bool   `json:"checking"`
	Permille uint32 `json:"permille"`
	Damaged  uint64 `json:"damaged"`
	Repaired uint64 `json:"repaired"`

	Unreadable uint64 `json:"unreadable"`
}

func ofScrub(s *api.ScrubCounters) *Scrub {
	if s == nil {
		return nil
	}
	return &Scrub{Passes: s.GetPasses(), Checking: s.GetChecking(), Permille: s.GetPermille(), Damaged: s.GetDamaged(), Repaired: s.GetRepaired(), Unreadable: s.GetUnreadable()}
}
