package monitor

import (
	"encoding/json"
	"fmt"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
)

// MaxMessageBytes bounds a message between servers. Snapshots are the largest.
const MaxMessageBytes = 16 << 20

// MaxJoinBytes bounds a join request and its reply.
const MaxJoinBytes = 1 << 20

// JoinRequest asks any server of a running cluster to take a new one in: one that never belonged to it, or that lost its disk. The shell
// of the new server sends it again, to one listed server after the other, until a JoinReply with an ID comes. Only then is there a core.
type JoinRequest struct {
	ClusterID string           `json:"cluster_id"` // "" accepts any
	Info      cells.ServerInfo `json:"info"`

	// Asks only whether the cluster has seen this initial server live: with its disk lost it may not begin under its number, for as a voter it would
	// have forgotten what it promised.
	Initial ident.ServerID `json:"initial,omitempty"`
}

// JoinReply answers a JoinRequest.
type JoinReply struct {
	ClusterID string                `json:"cluster_id"`
	ID        ident.ServerID        `json:"id"`                // the new server's; 0 if it was not taken in
	Servers   []cells.InitialServer `json:"servers,omitempty"` // all that are known, with their addresses
	Leader    ident.ServerID        `json:"leader"`            // ask this one, if ID is 0 and Fault is nil
	Fault     *cells.Fault          `json:"fault,omitempty"`
	Seen      bool                  `json:"seen,omitempty"` // the initial server that asks was live before
}

// EncodeJoin returns the bytes of a JoinRequest.
func EncodeJoin(r JoinRequest) ([]byte, error) { return encodeBounded(r, MaxJoinBytes) }

// DecodeJoin reads a JoinRequest.
func DecodeJoin(b []byte) (JoinRequest, error) {
	var r JoinRequest
	err := decodeBounded(b, &r, MaxJoinBytes)
	return r, err
}

// EncodeJoinReply returns the bytes of a JoinReply.
func EncodeJoinReply(r JoinReply) ([]byte, error) { return encodeBounded(r, MaxJoinBytes) }

// DecodeJoinReply reads a JoinReply.
func DecodeJoinReply(b []byte) (JoinReply, error) {
	var r JoinReply
	err := decodeBounded(b, &r, MaxJoinBytes)
	return r, err
}

func encodeBounded(v any, limitBytes int) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("monitor: encode %T: %w", v, err)
	}
	if len(b) > limitBytes {
		return nil, fmt.Errorf("monitor: %T of %d bytes exceeds %d", v, len(b), limitBytes)
	}
	return b, nil
}

func decodeBounded(b []byte, v any, limitBytes int) error {
	if len(b) > limitBytes {
		return fmt.Errorf("monitor: %T of %d bytes exceeds %d", v, len(b), limitBytes)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("monitor: decode %T: %w", v, err)
	}
	return nil
}
