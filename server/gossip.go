package server

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"
	"github.com/rs/zerolog"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/ident"
)

// gossip is this server's part in serf: who is there, and hints about who is not. Nothing is decided by it.
type gossip struct {
	serf   *serf.Serf
	events chan serf.Event
	quit   chan struct{}
	tasks  sync.WaitGroup
	log    zerolog.Logger
}

// Tags that every member carries.
const (
	tagID   = "id"
	tagCell = "cell"
	tagRole = "role"
	tagPeer = "peer"
)

// startGossip listens and tells hint about members that failed or left.
func startGossip(cfg *config.Server, id ident.ServerID, log zerolog.Logger, hint func(ident.ServerID, string)) (*gossip, error) {
	g := &gossip{events: make(chan serf.Event, 256), quit: make(chan struct{}), log: log}
	host, port, err := net.SplitHostPort(cfg.Listen.Gossip)
	if err != nil {
		return nil, fmt.Errorf("gossip address: %w", err)
	}
	ml := memberlist.DefaultLANConfig()
	ml.BindAddr, ml.AdvertiseAddr = host, host
	if ml.BindPort, err = strconv.Atoi(port); err != nil {
		return nil, fmt.Errorf("gossip address %s: %w", cfg.Listen.Gossip, err)
	}
	ml.AdvertisePort = ml.BindPort
	// Measured on eight processes: a killed one is noticed after 0.3 to 0.75 s, without a false alarm on a quiet machine. A false
	// alarm on a busy one costs a question, nothing more.
	// A cluster with longer leases can do little with earlier hints.
	slow := time.Duration(slowness(cfg.Timing))
	ml.ProbeInterval, ml.ProbeTimeout = slow*100*time.Millisecond, slow*50*time.Millisecond
	ml.SuspicionMult, ml.SuspicionMaxTimeoutMult = 2, 3
	ml.GossipInterval = slow * 50 * time.Millisecond
	ml.EnableCompression = false         // of messages of a hundred bytes it only makes work
	ml.DeadNodeReclaimTime = time.Second // a server that came back may do so under another address
	if len(cfg.Secret) > 0 {
		key := sha256.Sum256(append([]byte("cellvisor gossip "+cfg.ClusterID+" "), cfg.Secret...))
		ml.SecretKey = key[:]
	}
	ml.LogOutput = lineLogger{log}

	sc := serf.DefaultConfig()
	sc.NodeName = string(cfg.Name)
	sc.Tags = map[string]string{tagID: strconv.FormatUint(uint64(id), 10), tagCell: string(cfg.Cell), tagRole: string(cfg.Role), tagPeer: cfg.Listen.Peer}
	sc.MemberlistConfig = ml
	sc.EventCh = g.events
	sc.LogOutput = lineLogger{log}
	sc.EnableNameConflictResolution = false
	sc.DisableCoordinates = true
	sc.ReconnectInterval = 2 * time.Second
	sc.LeavePropagateDelay = 0
	if g.serf, err = serf.Create(sc); err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", cfg.Listen.Gossip, err)
	}
	g.tasks.Add(1)
	go func() {
		defer g.tasks.Done()
		g.listen(hint)
	}()
	return g, nil
}

func (g *gossip) listen(hint func(ident.ServerID, string)) {
	for {
		select {
		case ev := <-g.events:
			m, ok := ev.(serf.MemberEvent)
			if !ok || m.Type != serf.EventMemberFailed && m.Type != serf.EventMemberLeave {
				continue
			}
			for _, member := range m.Members {
				if id, err := strconv.ParseUint(member.Tags[tagID], 10, 64); err == nil && id != 0 {
					hint(ident.ServerID(id), "gossip")
				}
			}
		case <-g.quit:
			return
		}
	}
}

// missing returns those of the addresses that no member answers at.
func (g *gossip) missing(addrs []string) []string {
	alive := map[string]bool{}
	for _, m := range g.serf.Members() {
		if m.Status == serf.StatusAlive {
			alive[net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port)))] = true
		}
	}
	var out []string
	for _, a := range addrs {
		if host, port, err := net.SplitHostPort(a); err == nil {
			if ips, err := net.LookupIP(host); err == nil && len(ips) > 0 && !alive[net.JoinHostPort(ips[0].String(), port)] {
				out = append(out, a)
			}
		}
	}
	return out
}

// join tells serf of addresses to try. That some do not answer is normal: their servers may be dead.
func (g *gossip) join(addrs []string) {
	if len(addrs) == 0 {
		return
	}
	if n, err := g.serf.Join(addrs, true); err != nil {
		g.log.Debug().Err(err).Int("reached", n).Msg("gossip join")
	}
}

// Close ends gossip without saying good-bye: whether this server is gone is for the others to find out.
func (g *gossip) Close() {
	if err := g.serf.Shutdown(); err != nil {
		g.log.Debug().Err(err).Msg("gossip shutdown")
	}
	close(g.quit)
	g.tasks.Wait()
}

// lineLogger passes the lines of a library's log on at level debug.
type lineLogger struct{ log zerolog.Logger }

// Write implements io.Writer.
func (l lineLogger) Write(p []byte) (int, error) {
	for _, line := range bytes.Split(bytes.TrimSpace(p), []byte("\n")) {
		l.log.Debug().Msg(string(line))
	}
	return len(p), nil
}

// slowness is how many times longer than usual servers and workers may take to say something, from 1 to 4: whoever gave the cluster longer leases has a slow or
// busy machine.
func slowness(t config.Timing) int {
	return int(min(max(1, t.LeaseLength/config.DefaultTiming().LeaseLength), 4))
}
