package kvm

// HostTSC reads this host's time stamp counter, after all that came before it in the program.
func HostTSC() uint64
