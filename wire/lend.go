package wire

import (
	"encoding/json"
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// LendMessage is what two servers say to each other about memory that one lends the other: a question, or the answer to it.
type LendMessage struct {
	Ask    *LendAsk    `json:"ask,omitempty"`
	Answer *LendAnswer `json:"answer,omitempty"`
}

// LendAsk is a borrower's question on behalf of a part of a VM; see package mem/lending.
type LendAsk struct {
	VM     ident.VMID  `json:"vm"`
	Part   ident.Part  `json:"part"`
	As     ident.Part  `json:"as"`     // the part that the lender is to be on the plane between the two
	Number uint64      `json:"number"` // rises
	Has    ident.Bytes `json:"has"`    // the limit that the borrower goes by
	Held   ident.Bytes `json:"held"`
	Want   ident.Bytes `json:"want"`
}

// LendAnswer is the lender's word: how much the part may hold there, and where.
type LendAnswer struct {
	VM     ident.VMID  `json:"vm"`
	Part   ident.Part  `json:"part"`
	Number uint64      `json:"number"` // of the question
	Limit  ident.Bytes `json:"limit"`
	Addr   string      `json:"addr,omitempty"`
}

// lendLimit bounds an encoded LendMessage.
const lendLimit = 4096

// AppendLend appends the message to dst.
func AppendLend(dst []byte, m *LendMessage) []byte {
	text, err := json.Marshal(m)
	if err != nil {
		panic("wire: lend message: " + err.Error()) // nothing in it can fail
	}
	return append(dst, text...)
}

// DecodeLend decodes a message.
func DecodeLend(b []byte) (*LendMessage, error) {
	var m LendMessage
	if len(b) > lendLimit {
		return nil, fmt.Errorf("wire: lend message of %d bytes: %w", len(b), ErrTooLarge)
	}
	if err := json.Unmarshal(b, &m); err != nil || (m.Ask == nil) == (m.Answer == nil) {
		return nil, fmt.Errorf("wire: lend message: %w", ErrBadFrame)
	}
	if a := m.Ask; a != nil && (a.Part >= ident.MaxParts || a.As == 0 || a.As >= ident.MaxParts) {
		return nil, fmt.Errorf("wire: lend message of an impossible part: %w", ErrBadFrame)
	}
	return &m, nil
}

// WorkerLenderDir is the directory of the process that lends this server's memory, beside those of its workers. It has a
// WorkerSpec with Lends set, and a socket WorkerCtlSocket, on which each ToLender is answered by a FromLender.
const WorkerLenderDir = "lender"

// ToLender is all that the lender is to hold. What is missing in it is given up.
type ToLender struct {
	UntilBootMicros ident.Micros `json:"until_boot_micros"` // serve's lease
	Ask             bool         `json:"ask,omitempty"`     // only a question: nothing changes
	Loans           []LenderLoan `json:"loans,omitempty"`
}

// LenderLoan is what a part of a VM may hold.
type LenderLoan struct {
	VM      ident.VMID     `json:"vm"`
	Part    ident.Part     `json:"part"`
	As      ident.Part     `json:"as"`
	Server  ident.ServerID `json:"server"` // the borrower's
	Secret  string         `json:"secret"`
	Bytes   ident.Bytes    `json:"bytes"`              // frames beyond are refused
	Limit   ident.Bytes    `json:"limit"`              // what was lent
	PageOut bool           `json:"page_out,omitempty"` // what is beyond Limit goes to disk: the borrower does not give it back
}

// FromLender is the answer.
type FromLender struct {
	Loans []LenderState `json:"loans,omitempty"`
	Error string        `json:"error,omitempty"` // for people
}

// LenderState is a loan as the lender has it.
type LenderState struct {
	LenderLoan
	Addr     string      `json:"addr"`
	InMemory ident.Bytes `json:"in_memory"`
	OnDisk   ident.Bytes `json:"on_disk,omitempty"`
}

// Requests to a lender, on a plane between it and the borrower: an operation; for LendPut and LendCut a number that rises with each of them, as eight bytes;
// then for LendGet the number of a frame, as four bytes, for LendCut the first frame that is not needed any more, for LendPut the frames, number and
// contents. All numbers are little endian. The answer to LendGet is the contents.
const (
	LendGet = 1
	LendPut = 2
	LendCut = 3
)

// LendFrameBytes is the size of a frame in LendPut, and LendPutFrames how many of them one request may carry.
const (
	LendFrameBytes = 4 + ident.PageSize
	LendPutHeader  = 9
	LendPutFrames  = 15
)
