// Package feed brings the cluster's state to the console: it follows the stream of changes, consoles and output logs, asks again and again for
// what a screen shows beyond that, and goes on at another server when the one it talks to stops answering.
//
// States of a feed:
//
//	connecting --first message--> connected --silence, end--> lost --first message--> connected
//	                                                          |  ^
//	                                                          +--+ next address, longer pause (Backoff)
//
// The server sends what has changed at most every Config.Every. What the messages add up to is a Snapshot, immutable from then on. A
// receiver that is slow gets the newest update, not all of them.
//
// Invariants:
//   - A snapshot is never changed after it was published; Events share their backing array but only beyond the published length.
//   - The last good snapshot stays the current one while the cluster is lost, with its age.
//   - Everything kept is bounded: MaxEvents events, MaxChunkBytes of unread console.
//
// Locks: Feed.mu guards the connection in use and what is wanted; it is never held during a call.
package feed
