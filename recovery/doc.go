// Package recovery decides what the loss of servers means to each VM, and keeps the clock of a recovery. It is floor 2 and pure.
//
// A VM without protection follows Cellular Disco's contract: if it depended on what is gone it ends, at once (on-loss stop) or when it
// first touches a page that is gone (on-loss touch); a VM that did not depend on it is not touched at all.
//
//	             no part lost
//	running  ------------------>  untouched
//	   |  |      home lost, or not yet running, or on-loss stop
//	   |  +---------------------->  lost (reason: what was lost, in which epoch)
//	   |         other parts lost, on-loss touch
//	   +------------------------->  goes on with the surviving parts, in the VM epoch of the new view
//
// A VM that is protected by replicas goes on from the checkpoint that a standby in another cell holds:
//
//	             members lost, a standby left that holds a checkpoint
//	running  ------------------>  restored: the standby is home, every member goes back to the checkpoint
//	             only standbys lost
//	running  ------------------>  unprotected, until there is a new standby
//
// # Invariants
//
//   - [Contain] is a function of the loss and one VM: no VM's fate depends on another's.
//   - A VM without a part on an excluded incarnation is always untouched.
package recovery
