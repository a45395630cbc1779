// Package balancer decides where VMs run. It is floor 2 and pure: every decision follows from its arguments.
//
// It places new VMs ([Place]), finds work for a server that has slots free ([Steal], the idle balancer), and evens out the load of all servers
// ([Rebalance], the periodic balancer, over a [LoadTree]). A server's *slots* bound how many vCPUs of one VM it can run at once, for a VM's gang runs together
// or not at all; different VMs share slots over time. Load is counted in vCPUs for each slot, memory in bytes and never shared.
//
// # Invariants of a placement
//
//   - Every vCPU is on exactly one part, every part on a different live, open server that is not a witness.
//   - No part has more vCPUs than its server has slots.
//   - Each part's share of the VM's memory is free on its server.
//   - A span that is asked for is kept: parts are in its cells only, and each of them has one if there are vCPUs enough.
package balancer
