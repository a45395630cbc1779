package server

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/monitor"
)

const (
	housekeeping = 2 * time.Second
	clockSlackMs = 100
)

// attend follows the published state with what may take its time: whom to connect to, whom to watch, which files nobody needs any more.
func (s *Server) attend(ctx context.Context) {
	ticker := time.NewTicker(housekeeping)
	defer ticker.Stop()
	h := household{s: s, zeroMs: unixMsAtZero()}
	h.gossipJoin()
	for {
		snap := s.board.now()
		h.follow(snap)
		select {
		case <-snap.next:
		case <-ticker.C:
			h.gossipJoin()
			h.clock()
			h.nice()
		case <-ctx.Done():
			return
		}
	}
}

// household is what attend remembers. It belongs to its goroutine.
type household struct {
	s       *Server
	applied uint64
	peers   map[ident.ServerID]string
	swept   bool
	vms     map[ident.VMID]bool // those that were registered when files were last looked at
	unfit   bool                // the registry was told why this host runs no VMs
	zeroMs  int64
}

func (h *household) follow(snap *snapshot) {
	if snap.state.Applied == h.applied {
		return
	}
	h.applied = snap.state.Applied
	s := h.s
	peers := map[ident.ServerID]string{}
	for i := range snap.state.Servers {
		if sv := &snap.state.Servers[i]; sv.ID != s.store.Identity().Server && sv.Addrs.Peer != "" {
			peers[sv.ID] = sv.Addrs.Peer
		}
	}
	if len(peers) > 0 && !maps.Equal(peers, h.peers) {
		h.peers = peers
		s.peers.SetPeers(peers)
		s.savePeers(peers)
	}
	s.proof.watchServers(snap.state)
	if snap.acting() {
		h.files(snap.state)
		h.joinSwitches(snap.state)
		h.tellUnfit(snap)
	}
}

// files removes what belongs to VMs that are no longer registered: their directories once, after start; payloads whenever one goes.
func (h *household) files(state *cells.State) {
	vms := map[ident.VMID]bool{}
	needed := map[string]bool{}
	for i := range state.VMs {
		vm := &state.VMs[i]
		vms[vm.ID] = true
		for _, sha := range vm.Spec.Files() {
			needed[sha] = true
		}
	}
	h.s.workers.keepDisks(state)
	if !h.swept {
		h.swept = true
		h.s.workers.keepOnly(func(vm ident.VMID) bool { return vms[vm] })
	} else if maps.Equal(vms, h.vms) {
		return
	}
	h.vms = vms
	names, err := h.s.store.Blobs().List()
	if err != nil {
		h.s.log.Warn().Err(err).Msg("payloads cannot be listed")
		return
	}
	for _, name := range names {
		if !needed[name] {
			h.s.blobPins.removeUnpinned(name, func() {
				if payloadNeeded(h.s.board.now().state, name) { // registered since, by a call that has let go of its pin
					return
				}
				if err := h.s.store.Blobs().Remove(name); err != nil {
					h.s.log.Warn().Err(err).Msg("a payload that nobody needs cannot be removed")
				}
			})
		}
	}
}

func payloadNeeded(state *cells.State, sha string) bool {
	for i := range state.VMs {
		if slices.Contains(state.VMs[i].Spec.Files(), sha) {
			return true
		}
	}
	return false
}

// tellUnfit records once why this host runs no VMs, or that it does again.
func (h *household) tellUnfit(snap *snapshot) {
	self := snap.self()
	if h.unfit || self == nil || self.LastError == h.s.unfit {
		return
	}
	h.unfit = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), proposePatience)
		defer cancel()
		if err := h.s.propose(ctx, cells.Command{ServerError: &cells.ServerError{Server: self.ID, Text: h.s.unfit}}, nil); err != nil {
			h.s.log.Debug().Err(err).Msg("the server's error was not recorded")
		}
	}()
}

// gossipJoin tries the addresses of servers that gossip does not reach.
func (h *household) gossipJoin() {
	var addrs []string
	for _, p := range h.s.cfg.Initial {
		if p.ID != h.s.cfg.ID {
			addrs = append(addrs, p.Gossip)
		}
	}
	state := h.s.board.now().state
	for i := range state.Servers {
		if sv := &state.Servers[i]; sv.State == cells.ServerLive && sv.ID != h.s.store.Identity().Server {
			addrs = append(addrs, sv.Addrs.Gossip)
		}
	}
	h.s.gossip.join(h.s.gossip.missing(addrs))
}

// clock tells the core when the wall clock was set.
func (h *household) clock() {
	if now := unixMsAtZero(); now-h.zeroMs > clockSlackMs || h.zeroMs-now > clockSlackMs {
		h.zeroMs = now
		h.s.report(monitor.ClockSet{UnixMsAtZero: now})
	}
}

// nice catches threads that were started by one that had the old priority still.
func (h *household) nice() { _ = beNice(h.s.cfg.Nice) }

// blobPins keeps payloads that a call in progress has stored, but no VM names yet, from being removed. The zero value is ready.
type blobPins struct {
	mu   sync.Mutex
	pins map[string]int // protected by mu
}

func (b *blobPins) pin(name string) (unpin func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pins == nil {
		b.pins = map[string]int{}
	}
	b.pins[name]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.pins[name]--; b.pins[name] == 0 {
			delete(b.pins, name)
		}
	}
}

func (b *blobPins) removeUnpinned(name string, remove func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pins[name] == 0 {
		remove()
	}
}
