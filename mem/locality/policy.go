package locality

// Policy says what may be done.
type Policy uint8

// The policies. All but Auto always do the same, whatever it costs.
const (
	Fetch     Policy = iota // each page when it is touched
	Replicate               // and the whole region of each page that is read
	Move                    // and a vCPU goes at once to where most of its faults are answered
	Rehome                  // and a region's directory goes to where requests come from
	Auto                    // whichever has paid
)

var policyNames = [...]string{"fetch", "replicate", "move", "rehome", "auto"}

// String names the policy as users do.
func (p Policy) String() string { return policyNames[p] }

// Policies lists the names.
func Policies() []string { return append([]string(nil), policyNames[:]...) }

// Parse finds a policy by its name.
func Parse(name string) (Policy, bool) {
	for i, n := range policyNames {
		if n == name {
			return Policy(i), true
		}
	}
	return Fetch, false
}

// moves tells whether vCPUs may move.
func (p Policy) moves() bool { return p == Move || p == Auto }

// Default is the policy of a VM that names none.
const Default = Fetch
