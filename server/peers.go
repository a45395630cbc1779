package server

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/trust"
	"github.com/cellvisor/cellvisor/wire"
)

// peerHandler takes what arrives from other servers. It only passes things on to the loop: the core checks them.
type peerHandler struct{ s *Server }

// HandleEnvelope implements link.PeersHandler.
func (h peerHandler) HandleEnvelope(e wire.Envelope) error {
	h.s.faults.await(h.s.loopDone)
	if e.Kind == wire.EnvelopeAudit {
		return h.s.audit.hearHead(h.s.nameOf(e.Sender), e.Body)
	}
	if e.Kind == wire.EnvelopeGang {
		return h.s.gangs.receive(&e)
	}
	if e.Kind == wire.EnvelopeLoad {
		return h.s.loads.receive(&e)
	}
	if e.Kind == wire.EnvelopeLend {
		return h.s.lends.take(&e)
	}
	if e.Kind != wire.EnvelopeMonitor {
		return fmt.Errorf("kind %d is not for a server", e.Kind)
	}
	h.s.report(monitor.PeerMessage{From: e.Sender, Bytes: e.Body})
	return nil
}

// HandleRequest implements link.PeersHandler: a server that is not known yet asks to be taken in.
func (h peerHandler) HandleRequest(ctx context.Context, e wire.Envelope) (wire.EnvelopeKind, []byte, error) {
	if e.Kind != wire.EnvelopeJoin {
		return 0, nil, fmt.Errorf("request of kind %d is not known here", e.Kind)
	}
	if err := h.s.vouchJoin(link.RequestConn(ctx), e.Body); err != nil {
		return 0, nil, err
	}
	conn := h.s.proposals.Add(1)
	answer := make(chan []byte, 1)
	h.s.joins.Store(conn, answer)
	defer h.s.joins.Delete(conn)
	h.s.report(monitor.JoinRequested{Conn: conn, Bytes: e.Body})
	select {
	case b := <-answer:
		return wire.EnvelopeJoinReply, b, nil
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	case <-h.s.loopDone:
		return 0, nil, errors.New("this server is stopping")
	}
}

// secured adds to a monitor plane what a server with a certificate does: TLS, and a look at who is at the other end.
func (s *Server) secured(cfg link.PeersConfig) link.PeersConfig {
	if s.keys != nil {
		cfg.Wrap, cfg.Vouch = s.keys.Wrap, s.vouch
	}
	return cfg
}

// vouch says whether the certificate at the other end is that of the server with this number. Of one that this server does not know yet only
// the certificate is checked, which TLS did: the log says later who it is, and until then nothing that it sends is taken.
func (s *Server) vouch(conn net.Conn, who ident.ServerID) error {
	name, err := trust.ServerName(conn)
	if err != nil || who == 0 {
		return err
	}
	known := s.nameOf(who)
	if known != "" && string(known) != name {
		return fmt.Errorf("the certificate is that of server %s, number %d is %s", name, who, known)
	}
	return nil
}

func (s *Server) nameOf(id ident.ServerID) ident.ServerName {
	if snap := s.board.now(); snap != nil && snap.state != nil {
		if sv := snap.state.Server(id); sv != nil {
			return sv.Name
		}
	}
	for _, p := range s.cfg.Initial {
		if p.ID == id {
			return p.Name
		}
	}
	return ""
}

// vouchJoin says whether a server that wants to be taken in shows the certificate of its name.
func (s *Server) vouchJoin(conn net.Conn, request []byte) error {
	if s.keys == nil {
		return nil
	}
	name, err := trust.ServerName(conn)
	if err != nil {
		return err
	}
	r, err := monitor.DecodeJoin(request)
	if err != nil {
		return err
	}
	if string(r.Info.Name) != name {
		return fmt.Errorf("server %s shows the certificate of server %s", r.Info.Name, name)
	}
	return nil
}

// PeerUp implements link.PeersHandler.
func (h peerHandler) PeerUp(id ident.ServerID) {
	h.s.log.Debug().Uint64("server", uint64(id)).Msg("connected to a peer")
}

// PeerDown implements link.PeersHandler.
func (h peerHandler) PeerDown(id ident.ServerID, reset bool) {
	source := "no connection"
	if reset {
		source = "connection reset"
	}
	h.s.hint(id, source)
}

// answerJoin gives the core's answer to the connection that asked. The loop calls it.
func (s *Server) answerJoin(conn uint64, b []byte) {
	if answer, ok := s.joins.LoadAndDelete(conn); ok {
		answer.(chan []byte) <- b
	}
}

// hint tells the core that a server may be gone.
func (s *Server) hint(id ident.ServerID, source string) {
	s.count.hints.Add(1)
	s.log.Debug().Uint64("server", uint64(id)).Str("source", source).Msg("a server may be gone")
	s.report(monitor.Hint{Server: id, Source: source})
}
