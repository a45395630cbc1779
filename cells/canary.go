package cells

// Canaries are bugs that can be planted, so that tests can show that the simulator finds them. Production never sets one.
const (
	CanaryReadUnapplied   = "read-unapplied"    // a read counts before the state has reached its index
	CanaryReadNotRefused  = "read-not-refused"  // the leader goes on to confirm leases of a server that it is excluding
	CanaryExcludeEarly    = "exclude-early"     // a server is excluded while its lease may still run
	CanaryNoGrace         = "no-grace"          // a new leader counts silence from before its election
	CanaryLeaseFromReply  = "lease-from-reply"  // a lease is counted from the reply on, not from its request
	CanaryLeaseIgnored    = "lease-ignored"     // a lapsed lease is not obeyed
	CanaryIncarnation     = "incarnation"       // whoever runs under a server's ID is taken for the incarnation in the view
	CanaryFenceSkipped    = "fence-skipped"     // a server asks to be admitted before its old workers are killed
	CanaryBystander       = "bystander"         // the loss of a server ends a VM that did not depend on it
	CanaryTwice           = "twice"             // a request that is in the log twice is applied twice
	CanaryProofAnyProcess = "proof-any-process" // proof that one process is gone is held against the next one
)

// Canaries lists all of them.
var Canaries = []string{
	CanaryReadUnapplied, CanaryReadNotRefused, CanaryExcludeEarly, CanaryNoGrace, CanaryLeaseFromReply, CanaryLeaseIgnored,
	CanaryIncarnation, CanaryFenceSkipped, CanaryBystander, CanaryTwice, CanaryProofAnyProcess,
}
