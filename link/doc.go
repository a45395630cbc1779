// Package link moves messages between processes: page traffic between the workers of one VM (Pages), and agreement between the servers
// of a cluster (Peers). It is floor 4, a shell: it owns sockets, threads and deadlines, and decides nothing. What it reports about
// peers (PeerDown) is a hint.
package link
