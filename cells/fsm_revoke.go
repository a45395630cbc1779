package cells

import (
	"fmt"
	"slices"
	"strings"
)

// MaxRevoked bounds the certificates that a cluster refuses; each is kept for good.
const MaxRevoked = 4096

// maxSerialDigits is how long a certificate's serial number may be: RFC 5280, 4.1.2.2, allows 20 octets.
const maxSerialDigits = 40

// RevokedCert is a certificate that was taken back.
type RevokedCert struct {
	Serial string `json:"serial"` // hexadecimal digits, lower case
	UnixMs int64  `json:"unix_ms"`
}

// Revoke has certificates refused from now on. Who proposes it has checked that the cluster's authority says so. What is refused already stays as
// it is, so a list may come again. The result is [RevokeResult].
type Revoke struct {
	Certs []RevokedCert `json:"certs"`
	By    string        `json:"by,omitempty"`
}

// RevokeResult is the result of Revoke.
type RevokeResult struct {
	Added int `json:"added"`
	Total int `json:"total"`
}

// revoke leaves the list that is in force untouched and makes another: copies of the state share it.
func (f *FSM) revoke(c *Revoke) (any, *Fault) {
	next := slices.Clone(f.state.Revoked)
	for _, cert := range c.Certs {
		if n := len(cert.Serial); n == 0 || n > maxSerialDigits || strings.Trim(cert.Serial, "0123456789abcdef") != "" {
			return nil, faultf(CodeInvalid, "serial %q is not 1 to %d hexadecimal digits", clip(cert.Serial, 64), maxSerialDigits)
		}
		i, known := slices.BinarySearchFunc(next, cert.Serial, func(r RevokedCert, s string) int { return strings.Compare(r.Serial, s) })
		if !known {
			next = slices.Insert(next, i, cert)
		}
	}
	if len(next) > MaxRevoked {
		return nil, faultf(CodeInvalid, "%d certificates would be revoked, %d is the most: `cellvisor ca rotate` makes all of them worthless at once", len(next), MaxRevoked)
	}
	added := len(next) - len(f.state.Revoked)
	f.state.Revoked = next
	if added > 0 {
		f.emit(Event{Kind: EventRevoked, Subject: "cluster", Text: fmt.Sprintf("certificates taken back: %d, refused everywhere from now on; %d in all", added, len(next)),
			Fields: map[string]string{"added": fmt.Sprint(added), "total": fmt.Sprint(len(next)), "by": clip(c.By, 64)}})
	}
	return RevokeResult{Added: added, Total: len(next)}, nil
}
