package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/monitor"
	"github.com/cellvisor/cellvisor/wire"
)

const (
	peersFile    = "peers.json"
	joinPatience = 3 * time.Second // for one server's answer
	joinPause    = 500 * time.Millisecond
)

// openStore opens the data directory and returns the peers to begin with. A server that is neither stored nor among the initial ones first
// asks a running cluster to take it in.
func (s *Server) openStore(ctx context.Context) (map[ident.ServerID]string, error) {
	want := disk.Identity{ClusterID: s.cfg.ClusterID, Server: s.cfg.ID}
	known := map[ident.ServerID]string{}
	for _, p := range s.cfg.Initial {
		known[p.ID] = p.Peer
	}
	found, err := disk.Exists(s.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if !found && want.Server == 0 {
		reply, err := s.join(ctx)
		if err != nil {
			return nil, err
		}
		want.Server = reply.ID
		for _, p := range reply.Servers {
			known[p.ID] = p.Addrs.Peer
		}
	}
	if s.store, err = disk.Open(s.cfg.DataDir, want); err != nil {
		return nil, err
	}
	// The log alone does not tell a server that has only just joined where the others are, before it is told by them.
	if found {
		raw, err := os.ReadFile(filepath.Join(s.cfg.DataDir, peersFile))
		if err == nil {
			err = json.Unmarshal(raw, &known)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log.Warn().Err(err).Msg("addresses of peers cannot be read")
		}
	} else {
		s.savePeers(known)
	}
	return known, nil
}

// savePeers keeps the peers' addresses for the next start.
func (s *Server) savePeers(known map[ident.ServerID]string) {
	path := filepath.Join(s.cfg.DataDir, peersFile)
	raw, err := json.Marshal(known)
	if err == nil {
		err = os.WriteFile(path+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.log.Warn().Err(err).Msg("addresses of peers cannot be kept")
	}
}

// join asks the configured servers, one after the other, to take this one in, until one does or refuses.
func (s *Server) join(ctx context.Context) (monitor.JoinReply, error) {
	body, err := monitor.EncodeJoin(monitor.JoinRequest{ClusterID: s.cfg.ClusterID, Info: s.info()})
	if err != nil {
		return monitor.JoinReply{}, err
	}
	// A plane of our own for the question: the real one needs the number that the answer brings.
	peers, err := link.ListenPeers(s.secured(link.PeersConfig{
		ClusterID: s.cfg.ClusterID, Secret: s.cfg.Secret, ListenAddr: s.cfg.Listen.Peer, Handler: nobody{},
		Stamp: func() (ident.Incarnation, ident.Epoch) { return 0, 0 },
		Logf:  func(format string, args ...any) { s.log.Debug().Msgf(format, args...) },
	}))
	if err != nil {
		return monitor.JoinReply{}, err
	}
	defer peers.Close()
	for said := false; ; said = true {
		for _, addr := range s.cfg.Join {
			reply, err := s.askToJoin(ctx, peers, addr, body)
			switch {
			case ctx.Err() != nil:
				return monitor.JoinReply{}, ctx.Err()
			case err == nil && reply.Fault != nil:
				return monitor.JoinReply{}, fmt.Errorf("cluster does not take server %s in: %w", s.cfg.Name, reply.Fault)
			case err == nil && reply.ID != 0:
				return reply, nil
			case !said:
				s.log.Warn().Err(err).Str("addr", addr).Msg("waiting to be taken in by the cluster")
			}
		}
		select {
		case <-ctx.Done():
			return monitor.JoinReply{}, ctx.Err()
		case <-time.After(joinPause):
		}
	}
}

// askToJoin asks one server, and the leader if that is another one.
func (s *Server) askToJoin(ctx context.Context, peers *link.Peers, addr string, body []byte) (monitor.JoinReply, error) {
	reply, err := s.callJoin(ctx, peers, addr, body)
	if err != nil || reply.ID != 0 || reply.Fault != nil || reply.Leader == 0 {
		return reply, err
	}
	for _, sv := range reply.Servers {
		if sv.ID == reply.Leader && sv.Addrs.Peer != addr {
			return s.callJoin(ctx, peers, sv.Addrs.Peer, body)
		}
	}
	return reply, nil
}

func (s *Server) callJoin(ctx context.Context, peers *link.Peers, addr string, body []byte) (monitor.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	e, err := peers.Call(ctx, addr, wire.EnvelopeJoin, body)
	if err != nil {
		return monitor.JoinReply{}, err
	}
	return monitor.DecodeJoinReply(e.Body)
}

// nobody handles nothing: a server that has no number yet talks to no one.
type nobody struct{}

var errNotYet = errors.New("this server has not joined yet")

func (nobody) HandleEnvelope(wire.Envelope) error { return errNotYet }
func (nobody) HandleRequest(context.Context, wire.Envelope) (wire.EnvelopeKind, []byte, error) {
	return 0, nil, errNotYet
}
func (nobody) PeerUp(ident.ServerID)         {}
func (nobody) PeerDown(ident.ServerID, bool) {}
