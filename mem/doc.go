// Package mem is the page protocol: it keeps the memory of a virtual machine coherent over the servers that it spans, page by page, with
// one writer or many readers. It is pure: a Core is stepped with events and leaves effects; the worker executes them.
//
// # A page at one part
//
//	           read grant                    write grant
//	Invalid --------------> Shared ------------------------> Modified
//	   ^  ^                  | ^                              | |
//	   |  '------------------' '------------------------------' |
//	   |        Inval, FwdModified           FwdShared          |
//	   '--------------------------------------------------------'
//	                          FwdModified
//
// A page that nobody was ever granted is Zero: its first toucher gets it Modified, without data. A part that gave a page up retains its
// contents in the memfd, and the serial and the part they went to.
//
// # A transaction
//
// Each page has a directory, a part: region r (2 MiB) belongs to member number r mod n. It runs one transaction for a page at a time and
// queues the other requests, so that all parts see a page's transactions in the order of the serials that it gives them.
//
//	requester            directory            supplier        other sharers
//	    |---- Get ----------->|                   |                 |
//	    |                     |---- Fwd --------->|                 |
//	    |                     |---- Inval ------------------------->|
//	    |<--------- Data (contents, who will acknowledge) --|       |
//	    |<--------- Ack --------------------------------------------|
//	  installs when Data and every Ack are here
//	    |---- Done ---------->|  next transaction
//
// The directory grants without a supplier what the requester has already (an upgrade) or what is zero. If the directory's own part holds the
// page it supplies it: two hops. Messages to self never leave the Step.
//
// Any message may be lost, repeated or overtaken. Requests are repeated by the requester, all else by the directory; holders answer a
// repeated message of the page's current serial as they did before, from what they retain; whatever has a lower serial is over and
// ignored. A repeated request whose transaction is over just begins another, whose grant is installed like any.
//
// A holder puts off what would take a page away while the page is in its Window, so that a vCPU that waited for it gets to use it, or
// pinned by a device.
//
// Where Config.Rehome allows it, a region's directory can go to another part within an epoch: see rehoming. Parts of different versions may meet: in an epoch
// with one that does not know of it none goes anywhere, see Event.Older.
//
// # A change of epoch
//
// When parts are gone the survivors get a new set of members under a higher epoch. Messages of other epochs are refused, transactions
// under way are dropped, and every part reports to each new directory shard, in batches: what it holds; what it retains (contents received
// and not installed count as retained, by itself); what it knew as the directory of an earlier epoch; in which epochs it served as one. A
// shard serves requests once all members have reported.
//
// Survivors change epoch at different times, but each stops acting for the old one when it does, and nothing that was sent in the
// new one is taken in before. So the reports are a consistent cut of the old epoch's history, in which each page has at most one
// transaction under way. From it the latest version of a page is found, or that it cannot be told; decidePage says how. The two
// rules that are easy to get wrong:
//
// A retained copy is the latest only if its transaction was the last one in the newest epoch in which a directory of the page may have
// served. An older one may have been superseded by parts that have all died since, which nobody alive remembers.
//
// A page without any trace at a survivor is Zero only if the directory of that newest epoch lives and knows so. If it died, it may have
// granted the page to itself, and the page is Lost. So a VM that goes on after a loss loses the untouched pages of the dead parts'
// directory shards too. (A second part told of each region's first touch would avoid that; it is not done.)
//
// # Invariants
//
//   - At any time a page is Modified at one part and Invalid elsewhere, or Shared or Invalid everywhere.
//   - Every copy that is held is the page's latest version.
//   - A part installs write access only after all other holders' access has ended.
//   - Serials of a page rise; a serial's epoch is the one it was given in; no transaction outlives its epoch.
//   - What is Lost stays Lost, and is so only if a part that died may have held the latest version.
//
// Check tests those of one core; package sim/pages the others, in simulated worlds; package sim/explore in all reachable states of small
// ones.
//
// # Later
//
// Pages written since a checkpoint's cut will be those that became Modified, or were left writable, after it: the places are tryInstall and
// yield. Replicas in other cells are further holders that never read, known to the directory beside its sharers.
package mem
