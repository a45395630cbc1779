package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/trust"
)

// level is what a caller must be allowed to make a call.
type level uint8

const (
	mayLook level = iota + 1 // viewers, operators and servers
	mayAct                   // operators and servers; recorded in the audit log
	mayPeer                  // operators and servers; no act, but not for every eye
)

// access classifies every call of the API. A call that is not in it is refused; a test keeps it complete.
var access = map[string]level{
	"Status": mayLook, "ListServers": mayLook, "ListCells": mayLook, "ListVMs": mayLook, "GetVM": mayLook, "WaitVM": mayLook,
	"ListOperations": mayLook, "GetOperation": mayLook, "SafeToStop": mayLook, "ConsoleVM": mayLook, "OutputVM": mayLook, "Events": mayLook,
	"DebugCounters": mayLook, "Watch": mayLook, "PageMap": mayLook, "ListWorkers": mayLook, "ListDisks": mayLook, "Slices": mayLook,
	"TypeVM": mayAct, "RunVM": mayAct, "StopVM": mayAct, "ProtectVM": mayAct, "RemoveVM": mayAct, "RemoveDisk": mayAct, "Cordon": mayAct, "StartOperation": mayAct,
	"CancelOperation": mayAct, "StopServer": mayAct, "ResetVM": mayAct, "PauseVM": mayAct, "SaveVM": mayAct, "RestoreVM": mayAct, "SetFaults": mayAct, "CrashGuest": mayAct, "Balance": mayAct,
	"Revoke":  mayAct,
	"GetBlob": mayPeer, "PartState": mayPeer, "DebugDump": mayPeer, "AuditLog": mayPeer,
	// gRPC's reflection service: what calls there are.
	"ServerReflectionInfo": mayLook,
}

// caller is who makes a call.
type caller struct {
	name   string // "operator alice", "user root (uid 0)"
	role   trust.Role
	via    string // the server that passed the call on, if one did
	from   string // its address
	server bool   // it is a server, or runs as this one does: it may speak for others
}

type callerKey struct{}

// callerOf returns who makes the call.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// admit says who makes a call, or refuses it.
func (v *service) admit(ctx context.Context, fullMethod string) (_ context.Context, who caller, err error) {
	defer func() {
		if err != nil {
			v.s.audit.deny(who, fullMethod, err)
		}
	}()
	who, err = v.identify(ctx)
	if err != nil {
		return ctx, who, err
	}
	method := path.Base(fullMethod)
	need := access[method]
	ok := need == mayLook || (need == mayAct || need == mayPeer) && who.role != trust.RoleViewer
	if !ok {
		v.access.denied.Add(1)
		if need == 0 {
			return ctx, who, status.Errorf(codes.PermissionDenied, "the call %s is open to nobody", method)
		}
		return ctx, who, status.Errorf(codes.PermissionDenied,
			"%s may look but not act: %s needs an operator's certificate, which `cellvisor ca issue NAME --role operator` makes", who.name, method)
	}
	return context.WithValue(ctx, callerKey{}, who), who, nil
}

// identify says who is at the other end of the call's connection. What another server passes on is made in the name of whoever asked it.
func (v *service) identify(ctx context.Context) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, status.Error(codes.Unauthenticated, "the call comes from nowhere")
	}
	who := caller{from: p.Addr.String()}
	switch info := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		id, err := trust.PeerOf(info.State)
		if err != nil {
			return who, status.Error(codes.Unauthenticated, err.Error())
		}
		who.name, who.role, who.server = id.String(), id.Role, id.Role == trust.RoleServer
		if err := v.s.keys.Still(info.State); err != nil { // what was good when it connected
			v.access.ended.Add(1)
			return who, status.Error(codes.Unauthenticated, err.Error())
		}
	case userInfo:
		who.name, who.role = info.name(), trust.RoleOperator
		who.server = info.uid == 0 || int(info.uid) == os.Getuid()
		who.from = "unix"
	default:
		return who, status.Error(codes.Unauthenticated, "the connection says nothing about who is at its other end")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if via := md.Get(forwardedKey); len(via) > 0 && who.server {
		who.via = who.name
		if names := md.Get(behalfKey); len(names) > 0 {
			who.name = names[0]
		}
	}
	return who, nil
}

// userInfo is what the kernel says about a process that connected to the Unix socket.
type userInfo struct {
	credentials.CommonAuthInfo
	uid uint32
	pid int32
}

// AuthType implements credentials.AuthInfo.
func (userInfo) AuthType() string { return "unix" }

func (u userInfo) name() string {
	id := strconv.FormatUint(uint64(u.uid), 10)
	if known, err := user.LookupId(id); err == nil {
		return fmt.Sprintf("user %s (uid %s)", known.Username, id)
	}
	return "user " + id
}

// accessCounts are counts of those who were kept out.
type accessCounts struct {
	strangers atomic.Uint64 // connections without a certificate that is accepted
	revoked   atomic.Uint64 // of these: with one that was revoked
	ended     atomic.Uint64 // connections and calls that were refused because the certificate had expired or was revoked since they connected
	denied    atomic.Uint64 // calls that the caller may not make
}

// apiCredentials makes connections to the API say who is at their other end: on a Unix socket, whom the kernel names, since who may connect is a
// matter of the file's permissions; on TCP the holder of a certificate.
type apiCredentials struct {
	credentials.TransportCredentials // of TLS; nil: no TCP
	keys                             *trust.Credentials
	count                            *accessCounts
	refused                          func(from net.Addr, err error)
}

func newAPICredentials(keys *trust.Credentials, count *accessCounts, refused func(net.Addr, error)) *apiCredentials {
	c := &apiCredentials{keys: keys, count: count, refused: refused}
	if keys != nil {
		c.TransportCredentials = credentials.NewTLS(keys.ServerTLS())
	}
	return c
}

var errNotTCP = errors.New("this server has no certificate, so its API is on the Unix socket only")

// ServerHandshake implements credentials.TransportCredentials.
func (c *apiCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if uc, ok := conn.(*net.UnixConn); ok {
		cred, err := peerCredentials(uc)
		if err != nil {
			return nil, nil, err
		}
		return conn, userInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, uid: cred.Uid, pid: cred.Pid}, nil
	}
	if c.TransportCredentials == nil {
		return nil, nil, errNotTCP
	}
	secured, info, err := c.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		c.count.strangers.Add(1)
		if errors.Is(err, trust.ErrRevoked) {
			c.count.revoked.Add(1)
		}
		c.refused(conn.RemoteAddr(), err)
		return nil, nil, err
	}
	return c.keys.Watched(secured, func(err error) {
		c.count.ended.Add(1)
		c.refused(conn.RemoteAddr(), err)
	}), info, nil
}

// Info implements credentials.TransportCredentials.
func (c *apiCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls or unix"}
}

// Clone implements credentials.TransportCredentials.
func (c *apiCredentials) Clone() credentials.TransportCredentials { return c }

// peerCredentials asks the kernel who connected a Unix socket.
func peerCredentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, cerr
}

// clientTLS are the settings for calls to other servers' APIs; nil if this server has no certificate.
func (s *Server) clientTLS() *tls.Config {
	if s.keys == nil {
		return nil
	}
	return s.keys.ClientTLS()
}
