package wire

// WorkerScrub tells what the checks of the copies of disks here have come to.
type WorkerScrub struct {
	Passes   uint64 `json:"passes"`             // over all copies
	Checking bool   `json:"checking,omitempty"` // one is under way,
	Permille int    `json:"permille,omitempty"` // and has seen so much
	Damaged  uint64 `json:"damaged,omitempty"`  // blocks that did not match their checksums, in all
	Repaired uint64 `json:"repaired,omitempty"` // of these, taken from another copy

	Unreadable uint64 `json:"unreadable,omitempty"` // at home: blocks that no copy has now, as far as somebody has asked for them
}
