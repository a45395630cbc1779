package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cellvisor/cellvisor/cells"
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
// asks a running cluster to take it in; so does an initial one that lost its directory.
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
	if !found && (want.Server == 0 || s.wasLive(ctx)) {
		delete(known, s.cfg.ID)
		reply, err := s.join(ctx)
		if err != nil {
			return nil, err
		}
		want.Server = reply.ID
		for _, p := range reply.Servers {
			known[p.ID] = p.Addrs.Peer
		}
	}
	s.store, err = disk.Open(s.cfg.DataDir, want)
	if err != nil && found && errors.Is(err, disk.ErrOtherServer) {
		s.store, err = s.openJoined(err)
		delete(known, s.cfg.ID)
	}
	if err != nil {
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

// openJoined opens the directory of an initial server that lost an earlier one and joined as a new server. other is the error otherwise.
func (s *Server) openJoined(other error) (*disk.Store, error) {
	store, err := disk.Open(s.cfg.DataDir, disk.Identity{ClusterID: s.cfg.ClusterID})
	if err != nil {
		return nil, err
	}
	if store.Identity().Server < cells.FirstJoinedID {
		return nil, errors.Join(other, store.Close())
	}
	return store, nil
}

// wasLive asks the other initial servers whether the cluster has seen this one live. If so its directory was lost, or removed, and it may not
// begin under its number. Nobody who could say so may be there: then it begins.
func (s *Server) wasLive(ctx context.Context) bool {
	body, err := monitor.EncodeJoin(monitor.JoinRequest{ClusterID: s.cfg.ClusterID, Info: s.info(), Initial: s.cfg.ID})
	if err != nil {
		return false
	}
	peers, err := s.askingPeers()
	if err != nil {
		s.log.Warn().Err(err).Msg("cannot ask the other servers whether this one was live before")
		return false
	}
	defer peers.Close()
	addrs := s.askedToJoin()
	seen := make(chan bool, len(addrs))
	for _, addr := range addrs {
		go func() {
			reply, err := s.callJoin(ctx, peers, addr, body)
			seen <- err == nil && reply.Seen
		}()
	}
	for range addrs {
		if <-seen {
			s.log.Warn().Uint64("was", uint64(s.cfg.ID)).Str("data", s.cfg.DataDir).
				Msg("the data directory is empty, but the cluster has seen this server live: it joins as a new one")
			return true
		}
	}
	return false
}

// initial lists the servers that the cluster began with, for one of them.
func (s *Server) initial() []cells.InitialServer {
	var out []cells.InitialServer
	if s.store.Identity().Server != s.cfg.ID { // it joined later, perhaps in the place of an initial one
		return nil
	}
	for _, p := range s.cfg.Initial {
		out = append(out, cells.InitialServer{ID: p.ID, Name: p.Name, Cell: p.Cell, Role: cells.Role(p.Role), Addrs: cells.Addrs{Peer: p.Peer, Gossip: p.Gossip}})
	}
	return out
}

// askedToJoin are the servers that may take this one in.
func (s *Server) askedToJoin() []string {
	addrs := slices.Clone(s.cfg.Join)
	for _, p := range s.cfg.Initial {
		if p.ID != s.cfg.ID {
			addrs = append(addrs, p.Peer)
		}
	}
	return addrs
}

// askingPeers is a plane of our own for questions: the real one needs the number that the answer brings.
func (s *Server) askingPeers() (*link.Peers, error) {
	host, _, err := net.SplitHostPort(s.cfg.Listen.Peer)
	if err != nil {
		return nil, err
	}
	return link.ListenPeers(s.secured(link.PeersConfig{
		ClusterID: s.cfg.ClusterID, Secret: s.cfg.Secret, ListenAddr: net.JoinHostPort(host, "0"), Handler: nobody{},
		Stamp: func() (ident.Incarnation, ident.Epoch) { return 0, 0 },
		Logf:  func(format string, args ...any) { s.log.Debug().Msgf(format, args...) },
	}))
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
	peers, err := s.askingPeers()
	if err != nil {
		return monitor.JoinReply{}, err
	}
	defer peers.Close()
	for said := false; ; said = true {
		for _, addr := range s.askedToJoin() {
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
