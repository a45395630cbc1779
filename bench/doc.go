// Package bench measures a real cluster on this machine. Absolute times on a shared machine are orders of magnitude; what counts are ratios of
// things measured in turn within one run, and every figure stands beside its floor: what the same work costs without Cellvisor's protocol.
package bench
