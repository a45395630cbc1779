package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Role says what a certificate's holder is.
type Role string

// Roles.
const (
	RoleServer   Role = "server"
	RoleOperator Role = "operator"
	RoleViewer   Role = "viewer"
)

// Roles lists them, for messages and completion.
var Roles = []string{string(RoleServer), string(RoleOperator), string(RoleViewer)}

const scheme = "cellvisor"

// Identity is who a certificate says that its holder is.
type Identity struct {
	Cluster string
	Role    Role
	Name    string
}

// String is "operator alice".
func (id Identity) String() string { return string(id.Role) + " " + id.Name }

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Name}
}

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,62}$`)
	clusterPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// Check tells what is wrong with an identity that a certificate is wanted for.
func (id Identity) Check() error {
	switch {
	case !clusterPattern.MatchString(id.Cluster):
		return fmt.Errorf("cluster id %q must be 32 hexadecimal digits", id.Cluster)
	case id.Role != RoleServer && id.Role != RoleOperator && id.Role != RoleViewer:
		return fmt.Errorf("role %q must be one of %s", id.Role, strings.Join(Roles, ", "))
	case !namePattern.MatchString(id.Name) || id.Name == authorityName:
		return fmt.Errorf("name %q must be 1 to 63 of a-z, 0-9, '.', '_', '@' and '-', beginning with a letter or digit, and not %q", id.Name, authorityName)
	}
	return nil
}

// ErrIdentity says that a certificate names nobody of a cluster.
var ErrIdentity = errors.New("the certificate names no server, operator or viewer of a cluster")

// IdentityOf reads the identity in a certificate. It does not say whether the certificate is to be believed.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 || c.URIs[0].Scheme != scheme {
		return Identity{}, ErrIdentity
	}
	u := c.URIs[0]
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Cluster: u.Host, Role: Role(role), Name: name}
	if !ok || id.Check() != nil {
		return Identity{}, ErrIdentity
	}
	return id, nil
}
