// Package local runs a whole cluster on one machine: real serve processes on the loopback interface, with files below one directory.
// It is what `cellvisor up` and `cellvisor down` do.
//
//	DIR/cluster.json   Cluster: what runs here; written whole, by rename, under DIR/lock
//	DIR/lock           flock of whoever starts or ends processes
//	DIR/secret         shared by the cluster's servers
//	DIR/tls            certificate authority, certificates of the servers, of an operator and a viewer, and contexts for these
//	DIR/a-1.hcl        configuration of server a-1
//	DIR/a-1.log        what its serve process wrote
//	DIR/a-1/           its data directory: api.sock, the replicated log, workers/…
//
// A process is named by its PID and its start time together, and signalled through a pidfd that was opened before both were checked, so a
// PID that the kernel gave to another process meanwhile is never hit.
package local
