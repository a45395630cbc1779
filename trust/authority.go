package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Validity unless another one is asked for. Backdate is how far the clocks of a cluster's machines may differ.
const (
	DefaultAuthorityValidity = 10 * 365 * 24 * time.Hour
	DefaultValidity          = 365 * 24 * time.Hour
	backdate                 = 5 * time.Minute
	maxAuthorities           = 2
	authorityName            = "ca"
	// BundleFile holds the authorities that are trusted, the one that issues first.
	BundleFile = authorityName + ".crt"
	keyFile    = authorityName + ".key"
)

// Authority is a certificate authority: a directory with its bundle, its key, and the certificates that it issued.
type Authority struct {
	Dir     string
	Cluster string
	Trusted []*x509.Certificate // the one that issues first
	key     crypto.Signer
}

// Errors of an authority, to branch on.
var (
	ErrNoAuthority = errors.New("no certificate authority here")
	ErrExists      = errors.New("there is one already")
)

// Create makes an authority for a cluster in dir. The error wraps ErrExists if there is one.
func Create(dir, cluster string, valid time.Duration) (*Authority, error) {
	if !clusterPattern.MatchString(cluster) {
		return nil, fmt.Errorf("cluster id %q must be 32 hexadecimal digits", cluster)
	}
	for _, name := range []string{BundleFile, keyFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return nil, fmt.Errorf("certificate authority in %s: %w: `cellvisor ca show --dir %s` describes it, `cellvisor ca rotate` replaces it", dir, ErrExists, dir)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{Dir: dir, Cluster: cluster}
	return a, a.renew(valid)
}

// renew makes a new key and certificate of the authority itself and puts it in front of those that are trusted.
func (a *Authority) renew(valid time.Duration) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "cellvisor authority of " + a.Cluster},
		URIs:                  []*url.URL{{Scheme: scheme, Host: a.Cluster, Path: "/" + authorityName}},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	cert, err := sign(template, template, key.Public(), key, valid)
	if err != nil {
		return err
	}
	trusted := append([]*x509.Certificate{cert}, a.Trusted...)
	// The key first: a bundle whose first certificate has no key yet would issue nothing, but one whose key is lost could never.
	if err := writeKey(filepath.Join(a.Dir, keyFile), key); err != nil {
		return err
	}
	if err := writeCertificates(filepath.Join(a.Dir, BundleFile), trusted...); err != nil {
		return err
	}
	a.Trusted, a.key = trusted, key
	return nil
}

// Open reads the authority in dir. The error wraps ErrNoAuthority if there is none.
func Open(dir string) (*Authority, error) {
	trusted, err := readCertificates(filepath.Join(dir, BundleFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: `cellvisor ca init --dir %s --cluster ID` makes one", dir, ErrNoAuthority, dir)
	}
	if err != nil {
		return nil, err
	}
	a := &Authority{Dir: dir, Trusted: trusted}
	for _, c := range trusted {
		if len(c.URIs) != 1 || c.URIs[0].Scheme != scheme || c.URIs[0].Path != "/"+authorityName || a.Cluster != "" && a.Cluster != c.URIs[0].Host {
			return nil, fmt.Errorf("%s is not the bundle of one cluster's authority", filepath.Join(dir, BundleFile))
		}
		a.Cluster = c.URIs[0].Host
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("key of the certificate authority: %w", err)
	}
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(trusted[0].PublicKey) {
		return nil, fmt.Errorf("%s is not the key of the first certificate in %s", keyFile, BundleFile)
	}
	a.key = key
	return a, nil
}

// Rotate puts a new authority in front of the present one, which stays trusted until Retire.
func (a *Authority) Rotate(valid time.Duration) error {
	if len(a.Trusted) >= maxAuthorities {
		return fmt.Errorf("the last rotation is not finished: once every server and client has new certificates, `cellvisor ca rotate --retire --dir %s` drops the old authority", a.Dir)
	}
	if err := a.renew(valid); err != nil {
		return err
	}
	return a.keepRevoked(time.Now())
}

// Retire stops trusting all authorities but the newest.
func (a *Authority) Retire() error {
	if len(a.Trusted) < 2 {
		return fmt.Errorf("there is no older authority to retire in %s", a.Dir)
	}
	a.Trusted = a.Trusted[:1]
	return writeCertificates(filepath.Join(a.Dir, BundleFile), a.Trusted...)
}

// Issue writes NAME.crt and NAME.key for an identity of the authority's cluster. What is there already is replaced only if renew.
func (a *Authority) Issue(role Role, name string, valid time.Duration, renew bool) (Files, error) {
	id := Identity{Cluster: a.Cluster, Role: role, Name: name}
	f := a.Files(name)
	if err := id.Check(); err != nil {
		return f, err
	}
	if _, err := os.Lstat(f.Cert); err == nil && !renew {
		return f, fmt.Errorf("certificate %s: %w: --renew replaces it", f.Cert, ErrExists)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if role == RoleServer {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	cert, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: id.String()}, URIs: []*url.URL{id.uri()}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}, a.Trusted[0], key.Public(), a.key, valid)
	if err != nil {
		return f, err
	}
	if err := writeKey(f.Key, key); err != nil {
		return f, err
	}
	return f, writeCertificates(f.Cert, cert)
}

// Files are the files of a holder whose certificate this authority issued.
func (a *Authority) Files(name string) Files {
	return Files{CA: filepath.Join(a.Dir, BundleFile), Cert: filepath.Join(a.Dir, name+".crt"), Key: filepath.Join(a.Dir, name+".key")}
}

// Record describes one certificate.
type Record struct {
	Cluster   string    `json:"cluster"`
	Role      string    `json:"role"` // "ca" for an authority
	Name      string    `json:"name"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	File      string    `json:"file"`
	State     string    `json:"state"` // "valid", "expired", "revoked", "not yet valid", or "untrusted": signed by an authority that is not in the bundle
}

// List describes the authorities, the one that issues first, and then the certificates in the directory by name.
func (a *Authority) List(now time.Time) ([]Record, error) {
	var out []Record
	for _, c := range a.Trusted {
		out = append(out, record(c, Identity{Cluster: a.Cluster, Role: authorityName, Name: authorityName}, filepath.Join(a.Dir, BundleFile), now, a.Trusted))
	}
	paths, err := filepath.Glob(filepath.Join(a.Dir, "*.crt"))
	if err != nil {
		return nil, err
	}
	taken, _, err := readRevoked(filepath.Join(a.Dir, BundleFile), a.Trusted)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		if filepath.Base(path) == BundleFile {
			continue
		}
		certs, err := readCertificates(path)
		if err != nil {
			return nil, err
		}
		id, err := IdentityOf(certs[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		r := record(certs[0], id, path, now, a.Trusted)
		if _, back := taken[r.Serial]; back {
			r.State = "revoked"
		}
		out = append(out, r)
	}
	return out, nil
}

func record(c *x509.Certificate, id Identity, path string, now time.Time, trusted []*x509.Certificate) Record {
	r := Record{Cluster: id.Cluster, Role: string(id.Role), Name: id.Name, Serial: c.SerialNumber.Text(16), NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		File: path, State: "valid"}
	switch _, err := verify(c, trusted, x509.ExtKeyUsageAny, now); {
	case now.After(c.NotAfter):
		r.State = "expired"
	case now.Before(c.NotBefore):
		r.State = "not yet valid"
	case err != nil:
		r.State = "untrusted"
	}
	return r
}

// verify checks a certificate's chain and dates.
func verify(c *x509.Certificate, trusted []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([][]*x509.Certificate, error) {
	pool := x509.NewCertPool()
	for _, t := range trusted {
		pool.AddCert(t)
	}
	return c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer, valid time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(valid)
	if parent != template && template.NotAfter.After(parent.NotAfter) {
		template.NotAfter = parent.NotAfter
	}
	if valid < 0 { // one that is born expired, for rehearsals
		template.NotBefore = template.NotAfter.Add(-backdate)
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}

func writeKey(path string, key crypto.Signer) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return replaceFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

func writeCertificates(path string, certs ...*x509.Certificate) error {
	var text strings.Builder
	for _, c := range certs {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	return replaceFile(path, []byte(text.String()))
}

// replaceFile writes a file for its owner alone, so that a reader sees the old one or the new one.
func replaceFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(path+".new", 0o600); err != nil { // one that an interrupted attempt left may have had others
		return err
	}
	return os.Rename(path+".new", path)
}

const maxFileBytes = 1 << 20

func readPEM(path, want string) ([][]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	var out [][]byte
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		if block.Type == want {
			out = append(out, block.Bytes)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no %s in PEM form", path, strings.ToLower(want))
	}
	return out, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	blocks, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, b := range blocks {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// readKey reads a private key, and refuses one that others may read.
func readKey(path string) (crypto.Signer, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o): `chmod 600 %s`, and issue a new one if others could have", path, st.Mode().Perm(), path)
	}
	blocks, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(blocks[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T cannot sign", path, key)
	}
	return signer, nil
}
