package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// A message between cores, whatever link carries it:
//
//	 0  version      1 byte
//	 1  kind         1 byte
//	 2  idBytes      1 byte   length of the cluster id
//	 3  sender       8 bytes  ident.ServerID, little endian, as all integers
//	11  incarnation  8 bytes  of the sender, 0 unless it acts
//	19  epoch        8 bytes  of the sender's view
//	27  the cluster id, then the body
//
// Raft messages are taken from any known replica: one outside the view needs them to come back. All others are taken from the view's
// members only, under the incarnation that the receiver has on record; those by which a server asks to be admitted are the exception.

const (
	messageVersion     = 1
	messageHeaderBytes = 27
	maxClusterIDBytes  = 64
)

type messageKind uint8

const (
	kindRaft      messageKind = 1 + iota
	kindForward               // body: an encoded command, for the leader to propose
	kindHint                  // body: hintBody, for the leader
	kindGone                  // body: goneBody, proof for everyone
	kindCheck                 // body: checkBody, for a server on the same host as the suspect
	kindHello                 // no body: a server that hears no leader asks whether it still belongs here
	kindForgotten             // no body: it does not
	kindEnd
)

type hintBody struct {
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Source      string            `json:"source"`
}

type goneBody struct {
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
	Boot        string            `json:"boot"`
	Detail      string            `json:"detail"`
}

type checkBody struct {
	Server      ident.ServerID    `json:"server"`
	Incarnation ident.Incarnation `json:"incarnation"`
}

type message struct {
	kind        messageKind
	cluster     string
	sender      ident.ServerID
	incarnation ident.Incarnation
	epoch       ident.Epoch
	body        []byte
}

var errBadMessage = errors.New("monitor: message cannot be read")

func (m *message) encode() []byte {
	b := make([]byte, 0, messageHeaderBytes+len(m.cluster)+len(m.body))
	b = append(b, messageVersion, byte(m.kind), byte(len(m.cluster)))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.sender))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.incarnation))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.epoch))
	b = append(b, m.cluster...)
	return append(b, m.body...)
}

// decodeMessage reads a message. The body aliases b.
func decodeMessage(b []byte) (message, error) {
	if len(b) < messageHeaderBytes || len(b) > MaxMessageBytes {
		return message{}, fmt.Errorf("%w: %d bytes", errBadMessage, len(b))
	}
	if b[0] != messageVersion {
		return message{}, fmt.Errorf("%w: version %d, this is version %d", errBadMessage, b[0], messageVersion)
	}
	id := int(b[2])
	if b[1] == 0 || messageKind(b[1]) >= kindEnd || id > maxClusterIDBytes || len(b) < messageHeaderBytes+id {
		return message{}, fmt.Errorf("%w: kind %d, cluster id of %d bytes", errBadMessage, b[1], id)
	}
	return message{
		kind:        messageKind(b[1]),
		cluster:     string(b[messageHeaderBytes : messageHeaderBytes+id]),
		sender:      ident.ServerID(binary.LittleEndian.Uint64(b[3:])),
		incarnation: ident.Incarnation(binary.LittleEndian.Uint64(b[11:])),
		epoch:       ident.Epoch(binary.LittleEndian.Uint64(b[19:])),
		body:        b[messageHeaderBytes+id:],
	}, nil
}
