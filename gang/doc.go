// Package gang decides which gangs run when. It is floor 2 and pure: it is told the time and what happened, and hands out messages to other
// servers and orders to the workers of its own.
//
// A *gang* is the vCPUs of a VM that have work; they run together, on all servers of the VM, or not at all: a vCPU that spins on a lock whose
// holder does not run only burns its slot. (Cellular Disco, section 4.2: "a virtual machine's non-idle VCPUs are run simultaneously".)
//
// A *domain* is the set of live servers that VMs connect: slices of a VM over two servers bind the schedules of both. Each domain has one
// *conductor*, its lowest server, which every server works out from the same replicated state. The conductor plans slice after slice:
//
//	conductor --GangSlice--> server --Order--> worker     which gangs run, from when on
//	conductor <-GangReport-- server <--Note--- worker     how many vCPUs have work; when they were let go
//
// If all vCPUs of a domain have slots of their own, nothing is planned and nothing is sent: each server sees that by itself and leaves its
// workers free. That is the common case, and it costs nothing.
//
// # Servers that do not take part
//
// A server may leave its vCPUs to Linux (--sched host). A domain that has one is not sliced at all: half a gang would be held while the other runs.
//
// # The plan
//
// Every gang has a virtual time: the time that it ran, over its weight. At the begin of a slice all slots are empty and gangs are taken in the order of
// virtual time, that is, the one that has waited longest for its share comes first. A gang is taken if every one of its vCPUs with work gets a
// slot on its server; others, smaller ones, fill what is left. The first in the order is always taken, whatever its size: so no mix starves it.
// A gang that was idle comes back at the present virtual time: idling earns nothing. Gangs that run while those that are due cannot, on a server
// where few wait or in holes, go ahead together and share by weight what the others cannot use; what they are ahead is bounded, for all of them alike, so
// when others come who can use it they pay for it in bounded time.
//
// So a gang's *fair share* is that of a weighted max-min division of time: the time of all gangs rises together, by weight, until a server of some has no
// slots left; those have their share then, and the others rise on. It is had where gangs pack, as on one server and on servers of one slot; wide gangs on several
// servers of several slots leave holes, and all of them have less alike.
//
// As long as no vCPU comes or goes nothing of that changes, so slices are told many at a time, for up to reachMost or reachAlone: with a hundred VMs, to decide anew and tell it
// anew every few milliseconds would cost more than it is worth. What changes takes back what was told ahead (see ahead.go). Who runs is the same as if
// slices were planned one by one. A server or worker of a version that knows nothing of it is told one slice at a time, and so is its domain.
//
// A gang whose vCPUs all idle leaves its slots at once to others that fit. One that wakes is started at once if its slots are free; if not, it may cut
// the slice short, but never below MinSlice. Each start is charged MinCharge at least, so that waking often is no way to get more.
//
// # A slice is a lease
//
// Nothing waits for ever. A server that hears nothing from its conductor for SliceLease lets all its gangs run free, until it hears of a
// conductor again. An order to a worker has an end too (OrderLease). The clocks of servers are compared by the exchange of slices and reports, and a
// slice names its begin on the receiver's clock: so a gang starts on all servers within the error of that, not one message delay apart.
//
// # Invariants
//
//   - A gang of a slice has all its slots, on all its servers; the slots of a server are never promised twice.
//   - Slice numbers of a conductor rise; a server takes none twice and none out of order.
//   - The eligible gang with the least virtual time runs in every slice.
//   - What is told ahead of time follows from the present state; what no longer does is taken back before it begins.
package gang
