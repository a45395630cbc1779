package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Files are what one holder of a certificate needs.
type Files struct {
	CA   string // the bundle of authorities that are trusted; beside it, the list of certificates that were taken back
	Cert string
	Key  string
}

// Credentials are a holder's certificate and key and the authorities that it trusts. They are read again when a file changes; files that
// cannot be read, or do not fit together, leave those in force that were.
type Credentials struct {
	files Files
	clock func() time.Time

	mu      sync.Mutex
	marks   [4]fileMark         // protected by mu; of the files as last read
	cert    *tls.Certificate    // protected by mu
	id      Identity            // protected by mu
	trusted []*x509.Certificate // protected by mu
	revoked revoked             // protected by mu; by the list beside the bundle
	agreed  revoked             // protected by mu; by the cluster's word
	fault   error               // protected by mu; why the files as they are now are not in force
}

type fileMark struct {
	size  int64
	mtime time.Time
	inode uint64
}

// Load reads a holder's files. The error names the file and says what is wrong, an expired certificate included.
func Load(f Files) (*Credentials, error) {
	c := &Credentials{files: f, clock: time.Now}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.read(); err != nil {
		return nil, err
	}
	if now := c.clock(); now.After(c.cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s expired at %s: issue a new one with `cellvisor ca issue %s --role %s --renew`",
			f.Cert, c.cert.Leaf.NotAfter.Format(time.RFC3339), c.id.Name, c.id.Role)
	}
	return c, nil
}

// read requires mu.
func (c *Credentials) read() error {
	marks := c.look()
	trusted, err := readCertificates(c.files.CA)
	if err != nil {
		return err
	}
	certs, err := readCertificates(c.files.Cert)
	if err != nil {
		return err
	}
	key, err := readKey(c.files.Key)
	if err != nil {
		return err
	}
	id, err := IdentityOf(certs[0])
	if err != nil {
		return fmt.Errorf("%s: %w", c.files.Cert, err)
	}
	if public, ok := key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(certs[0].PublicKey) {
		return fmt.Errorf("%s is not the key of %s", c.files.Key, c.files.Cert)
	}
	taken, _, err := readRevoked(c.files.CA, trusted)
	if err != nil {
		return err
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, cert := range certs {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	c.marks, c.cert, c.id, c.trusted, c.revoked, c.fault = marks, pair, id, trusted, taken, nil
	return nil
}

// look requires mu.
func (c *Credentials) look() (marks [4]fileMark) {
	for i, path := range []string{c.files.CA, c.files.Cert, c.files.Key, filepath.Join(filepath.Dir(c.files.CA), RevokedFile)} {
		if st, err := os.Stat(path); err == nil {
			marks[i] = fileMark{size: st.Size(), mtime: st.ModTime(), inode: inodeOf(st)}
		}
	}
	return marks
}

func inodeOf(st os.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}

// now returns what is in force, from the files as they are.
func (c *Credentials) now() (*tls.Certificate, []*x509.Certificate, Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.look() != c.marks {
		if err := c.read(); err != nil {
			c.fault = err
		}
	}
	return c.cert, c.trusted, c.id
}

// Identity is who the holder is.
func (c *Credentials) Identity() Identity {
	_, _, id := c.now()
	return id
}

// Expires is when the holder's certificate ends.
func (c *Credentials) Expires() time.Time {
	cert, _, _ := c.now()
	return cert.Leaf.NotAfter
}

// Fault says why the files as they are now are not in force; nil if they are.
func (c *Credentials) Fault() error {
	c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// ServerTLS are the settings of the side that accepts connections: TLS 1.3, and a certificate of this cluster asked of everyone.
func (c *Credentials) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, // checked by VerifyConnection, against the authorities of the moment
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, _, _ := c.now()
			return cert, nil
		},
		SessionTicketsDisabled: true, // every connection shows a certificate that is valid now
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := c.check(s, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// ClientTLS are the settings of the side that connects: it shows the holder's certificate and talks to servers of its cluster only.
func (c *Credentials) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The library would look for a host name. A server is known by cluster and name instead, which VerifyConnection checks, chain
		// and dates included.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _, _ := c.now()
			return cert, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := c.check(s, x509.ExtKeyUsageServerAuth)
			if err == nil && id.Role != RoleServer {
				err = refusal("%s is no server", id)
			}
			return err
		},
	}
}

// ErrRefused is wrapped by the reason why the other side's certificate is not accepted.
var ErrRefused = errors.New("certificate refused")

func refusal(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// check says who is at the other end, or why that is not accepted.
func (c *Credentials) check(s tls.ConnectionState, usage x509.ExtKeyUsage) (Identity, error) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, refusal("none was shown")
	}
	_, trusted, self := c.now()
	leaf := s.PeerCertificates[0]
	id, err := IdentityOf(leaf)
	if err != nil {
		return Identity{}, refusal("%v", err)
	}
	now := c.clock()
	if _, err := verify(leaf, trusted, usage, now); err != nil {
		if now.After(leaf.NotAfter) {
			return Identity{}, refusal("that of %s expired at %s", id, leaf.NotAfter.Format(time.RFC3339))
		}
		return Identity{}, refusal("that of %s: %v", id, err)
	}
	if err := c.Still(s); err != nil {
		return Identity{}, err
	}
	if id.Cluster != self.Cluster {
		return Identity{}, refusal("%s is of cluster %s, this is %s", id, id.Cluster, self.Cluster)
	}
	return id, nil
}

// PeerOf says who is at the other end of a TLS connection of this package's settings, once its handshake is over.
func PeerOf(s tls.ConnectionState) (Identity, error) {
	if !s.HandshakeComplete || len(s.PeerCertificates) == 0 {
		return Identity{}, refusal("none was shown")
	}
	return IdentityOf(s.PeerCertificates[0])
}

// Wrap puts TLS around a connection between two servers. The handshake runs with the first bytes.
func (c *Credentials) Wrap(conn net.Conn, dialer bool) (net.Conn, error) {
	if dialer {
		return &serverConn{Conn: tls.Client(conn, c.ClientTLS()), raw: conn, watch: watch{keys: c}}, nil
	}
	return &serverConn{Conn: tls.Server(conn, c.ServerTLS()), raw: conn, watch: watch{keys: c}}, nil
}

// serverConn is a TLS connection between servers. Its end needs no farewell, for which a peer that does not read would have to be waited for:
// what it carries says itself where it is complete.
type serverConn struct {
	*tls.Conn
	raw   net.Conn
	watch watch
}

// Close implements net.Conn.
func (c *serverConn) Close() error { return c.raw.Close() }

// Read implements net.Conn.
func (c *serverConn) Read(b []byte) (int, error) {
	if err := c.watch.check(c.ConnectionState); err != nil {
		c.raw.Close()
		return 0, err
	}
	return c.Conn.Read(b)
}

// Write implements net.Conn.
func (c *serverConn) Write(b []byte) (int, error) {
	if err := c.watch.check(c.ConnectionState); err != nil {
		c.raw.Close()
		return 0, err
	}
	return c.Conn.Write(b)
}

// ServerName says which server is at the other end of a connection that Wrap made; its handshake must be over.
func ServerName(conn net.Conn) (string, error) {
	t, ok := conn.(*serverConn)
	if !ok {
		return "", refusal("the connection has none")
	}
	id, err := PeerOf(t.ConnectionState())
	if err != nil {
		return "", err
	}
	if id.Role != RoleServer {
		return "", refusal("%s is no server", id)
	}
	return id.Name, nil
}
