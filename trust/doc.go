// Package trust says who is who: a certificate authority for one cluster, the certificates that it issues, and the TLS settings that both sides
// of a connection use. It is floor 4: it reads and writes files and asks the clock; what a role may do is decided where it is asked.
//
// # Identities
//
// A certificate names its holder in one URI, and nothing else in it counts:
//
//	cellvisor://CLUSTER/server/a-1       a server: speaks for itself, and for the operators whose calls it passes on
//	cellvisor://CLUSTER/operator/alice   may do everything that the command line can
//	cellvisor://CLUSTER/viewer/bob       may look
//
// Host names and addresses are not in it: a server may move to another address. Whoever connects checks cluster, role and, where it knows
// better, the name. So a certificate of another cluster is worth nothing here, even if one authority had signed both.
//
// # Life of an authority
//
//	init ──▶ one authority ──rotate──▶ two authorities, the newer one issues ──retire──▶ one authority
//
// The bundle ca.crt holds all authorities that are trusted, the one that issues first. While it holds two, certificates of both are
// accepted, so that servers get the new bundle and then new certificates one after the other, without an interruption: files are read
// again when they change.
//
// Invariants: a private key is never in a file that others may read; a file is replaced as a whole; an expired certificate is never
// accepted, whoever signed it.
package trust
