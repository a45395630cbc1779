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
// # Invariants
//
//   - [Contain] is a function of the loss and one VM: no VM's fate depends on another's.
//   - A VM without a part on an excluded incarnation is always untouched.
package recovery
