// Package feed brings the cluster's state to the console: it polls the control API, follows events, consoles and output logs, and goes on
// at another server when the one it talks to stops answering.
//
// States of a feed:
//
//	connecting --poll answered--> connected --poll failed--> lost --poll answered--> connected
//	                                                          |  ^
//	                                                          +--+ next address, longer pause (Backoff)
//
// A poll runs at least every Config.Interval, at once after an event or a call to Refresh, and never more often than MinInterval. What it
// found is a Snapshot, immutable from then on. A receiver that is slow gets the newest update, not all of them.
//
// Invariants:
//   - A snapshot is never changed after it was published; Events share their backing array but only beyond the published length.
//   - The last good snapshot stays the current one while the cluster is lost, with its age.
//   - Everything kept is bounded: MaxEvents events, MaxChunkBytes of unread console.
//
// Locks: Feed.mu guards the connection in use and the watched names; it is never held during a call.
package feed
