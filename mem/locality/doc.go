// Package locality decides, by what it observes, what is done about pages that a virtual machine's vCPUs need and other servers hold: fetch each page when
// it is touched, fetch what lies around it to read as well, have the region's directory where requests come from, or move the vCPU to where its pages are. It is floor 2 and pure.
//
//	part      faults, pages that come and go --> Observer --> how much to fetch around the next fault
//	directory requests that come --> Observer --> which region's directory should be where
//	                                                |
//	                                              Report: who waited how long for whom
//	                                                v
//	home                                         Chooser --> Wish: this vCPU to that part
//
// # What is observed
//
// How long each vCPU waited for pages of each other part: the time is measured, so no model of the network is needed. For reading ahead, by region of
// 32 pages: faults, and whether what was fetched unasked was of use, which a few pages tell that are not mapped before somebody touches them.
//
// # When a vCPU moves
//
// A vCPU that waits for a part's pages runs up a debt with it, which fades with a half-life of half a second. It moves when the debt has reached what the move
// costs: then waiting has cost as much as moving would have, so whatever comes next, it costs at most about twice what the best choice in hindsight does
// (as with renting skis). What the part's vCPUs waited for pages of the vCPU's own part counts too, for the share that it has in that: all of it, if nobody else is there.
//
// Of two vCPUs that wait for each other either may move. The one that goes to where more are brings the VM together; the other way round vCPUs that had been
// together are apart, the next one follows, and so on in a circle. Pages at a part where no vCPU is are fetched once and stay, so waiting for these counts for an
// eighth; and nobody is sent to where there is no slot, as far as home knows.
//
// A move is on trial until it has shown that the VM waits less, or waiting has cost as much again. One that has not makes its vCPU twice as patient, one that has makes it half as
// patient again, and so does time. So useless moves get rare, whatever the guest does, and useful ones stay quick. Moves come one at a time: two vCPUs that
// need each other's pages do not swap places.
//
// # Invariants
//
//   - Memory is bounded by vCPUs, parts and a table of fixed size, whatever the guest touches. Noting a page allocates nothing once its vCPU is known.
//   - No move is wished while another one is open or on trial.
//   - A part that has refused is not asked again for a while, which doubles.
package locality
