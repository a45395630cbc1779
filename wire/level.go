package wire

// Level says what a worker knows of what the parts of a VM say to each other. Servers of a cluster are upgraded one after the other, and a worker outlives
// the upgrade of its serve, so the parts of one VM may be of different versions. Each announces its level when it is ready, the registry keeps it, and every member
// is told those of all. A VM uses what all of its members know: its level is the least of theirs, fixed for an epoch.
//
// Who announces a level takes what belongs to it, at any time: so nothing depends on members who are told different levels (a registry that an older serve
// wrote into knows of none). A message that a worker does not know costs it the connection, and that a request which is repeated until the epoch ends.
//
// Whoever adds a kind of message, a record or a part of a vCPU's state that others have to understand adds a level, and uses it only where the VM has that.
type Level uint8

// The levels. Each includes those before it.
const (
	LevelUnknown  Level = iota // nothing is announced: the program is older than levels
	LevelRehoming              // KindHome, KindHomeAck, KindHomed, HoldingHome; vCPUs of Linux machines are handed over with their local APICs
	LevelNow      = LevelRehoming
)

// Level is the least level of the members.
func (m *WorkerMembers) Level() Level {
	least := LevelNow
	for i := range m.Members {
		least = min(least, m.Members[i].Level)
	}
	return least
}
