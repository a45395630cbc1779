package wire

import "testing"

// A VM uses what all of its members know, and nothing that this program does not.
func TestLevelOfMembersIsTheLeast(t *testing.T) {
	m := WorkerMembers{Members: []WorkerMember{{Level: LevelNow}, {Level: LevelUnknown}, {Level: LevelNow + 1}}}
	if got := m.Level(); got != LevelUnknown {
		t.Errorf("the level is %d, want %d", got, LevelUnknown)
	}
	m.Members = m.Members[2:]
	if got := m.Level(); got != LevelNow {
		t.Errorf("the level of members of a later version is %d, want this one's, %d", got, LevelNow)
	}
}
