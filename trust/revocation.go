package trust

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// RevokedFile is the list of certificates that were taken back, beside the bundle: an ordinary X.509 revocation list, signed by the authority that
// issues. Whoever has the bundle looks for it there, and reads it again when it changes.
const RevokedFile = authorityName + ".crl"

// ErrRevoked is wrapped by refusals of certificates that were taken back.
var ErrRevoked = errors.New("it was revoked")

// listValidity is what a list says of itself. It is not enforced: an old list is better than none.
const listValidity = 10 * 365 * 24 * time.Hour

// listType is the list's name in PEM.
const listType = "X509 CRL"

// revoked tells when certificates were taken back, by serial number in hexadecimal digits.
type revoked map[string]time.Time

// Revocation is a certificate that was taken back.
type Revocation struct {
	Serial string // hexadecimal digits
	At     time.Time
}

// ReadList reads a revocation list in PEM that one of the trusted authorities must have signed, by rising serial.
func (c *Credentials) ReadList(raw []byte) ([]Revocation, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != listType {
		return nil, errors.New("this is no revocation list in PEM form")
	}
	_, trusted, _ := c.now()
	known, _, err := parseRevoked("the revocation list", block.Bytes, trusted)
	if err != nil {
		return nil, err
	}
	out := make([]Revocation, 0, len(known))
	for _, serial := range slices.Sorted(maps.Keys(known)) {
		out = append(out, Revocation{Serial: serial, At: known[serial]})
	}
	return out, nil
}

// Refuse has certificates refused besides those on the list that is kept in a file: the cluster has agreed on them. It replaces what was said before.
func (c *Credentials) Refuse(list []Revocation) {
	agreed := make(revoked, len(list))
	for _, r := range list {
		agreed[r.Serial] = r.At
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agreed = agreed
}

// readRevoked reads the list beside a bundle. No file is an empty list; one that none of the authorities signed is an error.
func readRevoked(bundle string, trusted []*x509.Certificate) (revoked, *x509.RevocationList, error) {
	path := filepath.Join(filepath.Dir(bundle), RevokedFile)
	blocks, err := readPEM(path, listType)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return parseRevoked(path, blocks[0], trusted)
}

// parseRevoked reads a list; where says where it comes from.
func parseRevoked(where string, der []byte, trusted []*x509.Certificate) (revoked, *x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", where, err)
	}
	for _, t := range trusted {
		if err = list.CheckSignatureFrom(t); err == nil {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: no authority that is trusted has signed it: %w", where, err)
	}
	out := revoked{}
	for _, e := range list.RevokedCertificateEntries {
		out[e.SerialNumber.Text(16)] = e.RevocationTime
	}
	return out, list, nil
}

// Revoke takes back the certificate of a name in the directory, or the one with a serial number (hexadecimal), as `ca show -o wide` lists it. It
// returns whose it was: "" of one that is not here any more.
func (a *Authority) Revoke(name, serial string, now time.Time) (whose string, err error) {
	number, ok := new(big.Int).SetString(serial, 16)
	if name != "" {
		certs, err := readCertificates(a.Files(name).Cert)
		if err != nil {
			return "", fmt.Errorf("no certificate of %q is in %s; --serial takes one back that is kept elsewhere: %w", name, a.Dir, err)
		}
		id, err := IdentityOf(certs[0])
		if err != nil {
			return "", err
		}
		number, ok, whose = certs[0].SerialNumber, true, id.String()
	}
	if !ok || number.Sign() <= 0 {
		return "", fmt.Errorf("serial %q is no number in hexadecimal digits: `cellvisor ca show -o wide` lists them", serial)
	}
	known, list, err := readRevoked(filepath.Join(a.Dir, BundleFile), a.Trusted)
	if err != nil {
		return "", err
	}
	if at, ok := known[number.Text(16)]; ok {
		return "", fmt.Errorf("serial %s: %w already, at %s", number.Text(16), ErrRevoked, at.Format(time.RFC3339))
	}
	next := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(listValidity)}
	if list != nil {
		next.Number, next.RevokedCertificateEntries = new(big.Int).Add(list.Number, next.Number), list.RevokedCertificateEntries
	}
	next.RevokedCertificateEntries = append(next.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: number, RevocationTime: now})
	raw, err := x509.CreateRevocationList(rand.Reader, next, a.Trusted[0], a.key)
	if err != nil {
		return "", err
	}
	return whose, replaceFile(filepath.Join(a.Dir, RevokedFile), pem.EncodeToMemory(&pem.Block{Type: listType, Bytes: raw}))
}

// keepRevoked signs the list anew, with the authority that issues now: after a rotation the old one's word will not count.
func (a *Authority) keepRevoked(now time.Time) error {
	_, list, err := readRevoked(filepath.Join(a.Dir, BundleFile), a.Trusted)
	if err != nil || list == nil {
		return err
	}
	next := &x509.RevocationList{Number: new(big.Int).Add(list.Number, big.NewInt(1)), ThisUpdate: now, NextUpdate: now.Add(listValidity),
		RevokedCertificateEntries: list.RevokedCertificateEntries}
	raw, err := x509.CreateRevocationList(rand.Reader, next, a.Trusted[0], a.key)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(a.Dir, RevokedFile), pem.EncodeToMemory(&pem.Block{Type: listType, Bytes: raw}))
}
