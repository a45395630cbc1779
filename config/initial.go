package config

import (
	"fmt"
	"sort"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// initial reads the blocks "initial". They must agree with this server's own name, cell, role and addresses, or two servers of one
// cluster would disagree about it.
func (p *parser) initial(top *block, s *Server) {
	at := make(map[ident.ServerName]hcl.Range)
	for _, c := range top.blocks.OfType("initial") {
		b := p.open(c.Body, fmt.Sprintf("block %q %q", "initial", c.Labels[0]), c.Labels[0], c.DefRange,
			[]string{"id", "cell", "role", "voter", "peer", "gossip"}, nil)
		peer := p.peer(b, c.LabelRanges[0])
		if first, dup := at[peer.Name]; dup {
			p.say(&c.DefRange, fmt.Sprintf("server %q has an initial block in line %d already", peer.Name, first.Start.Line))
			continue
		}
		at[peer.Name] = c.DefRange
		s.Initial = append(s.Initial, peer)
	}
	if len(s.Initial) == 0 {
		return
	}
	sort.Slice(s.Initial, func(i, j int) bool { return s.Initial[i].ID < s.Initial[j].ID })
	p.distinct(s.Initial, at)
	p.voters(s, at)
	p.findSelf(s, at)
}

func (p *parser) peer(b *block, nameAt hcl.Range) Peer {
	peer := Peer{Name: ident.ServerName(b.label), Role: p.role(b)}
	if v, at, ok := b.value("id", cty.Number); ok {
		n, whole := number(v)
		if !whole || n == 0 {
			p.say(at, "id must be a whole number above 0")
		}
		peer.ID = ident.ServerID(n)
	} else if at == nil {
		p.say(&b.at, b.what+": id is missing")
	}
	cell, cellAt := b.str("cell", "")
	if cellAt == nil {
		cellAt = &b.at
	}
	peer.Cell = ident.CellName(cell)
	p.identity(b.label, &nameAt, cell, cellAt, peer.Role)
	peer.Voter = true
	if v, _, ok := b.value("voter", cty.Bool); ok {
		peer.Voter = v.True()
	}
	peer.Peer = p.hostPort(b, "peer", true)
	peer.Gossip = p.hostPort(b, "gossip", true)
	return peer
}

// distinct refuses IDs and addresses that are used twice.
func (p *parser) distinct(peers []Peer, at map[ident.ServerName]hcl.Range) {
	ids := make(map[ident.ServerID]ident.ServerName)
	addrs := make(map[string]ident.ServerName)
	for _, peer := range peers {
		where := at[peer.Name]
		if other, dup := ids[peer.ID]; dup && peer.ID != 0 {
			p.say(&where, fmt.Sprintf("servers %q and %q have the same id %d", other, peer.Name, peer.ID))
		}
		ids[peer.ID] = peer.Name
		for _, a := range []string{peer.Peer, peer.Gossip} {
			if other, dup := addrs[a]; dup && a != "" {
				p.say(&where, fmt.Sprintf("servers %q and %q have the same address %s", other, peer.Name, a))
			}
			addrs[a] = peer.Name
		}
	}
}

// voters checks that the agreement can work: an odd number would be best, but only none and too many are wrong.
func (p *parser) voters(s *Server, at map[ident.ServerName]hcl.Range) {
	n := 0
	var last hcl.Range
	for _, peer := range s.Initial {
		if peer.Voter {
			n++
			last = at[peer.Name]
		} else if peer.Role == RoleWitness {
			where := at[peer.Name]
			p.say(&where, "a witness is there to vote: remove voter = false")
		}
	}
	switch {
	case n == 0:
		p.say(nil, "no initial server is a voter: the cluster could never agree on anything")
	case n > maxVoters:
		p.say(&last, fmt.Sprintf("%d initial servers are voters, at most %d may be: set voter = false on the others", n, maxVoters))
	}
}

// findSelf finds this server among the initial ones and takes its ID from there.
func (p *parser) findSelf(s *Server, at map[ident.ServerName]hcl.Range) {
	for _, peer := range s.Initial {
		if peer.Name != s.Name {
			continue
		}
		where := at[peer.Name]
		for _, c := range []struct{ what, here, there string }{
			{"cell", string(s.Cell), string(peer.Cell)},
			{"role", string(s.Role), string(peer.Role)},
			{"peer address", s.Listen.Peer, peer.Peer},
			{"gossip address", s.Listen.Gossip, peer.Gossip},
		} {
			if c.here != c.there {
				p.say(&where, fmt.Sprintf("initial block of this server has %s %q, the rest of the file says %q", c.what, c.there, c.here))
			}
		}
		s.ID = peer.ID
		return
	}
	if s.Name != "" {
		p.say(nil, fmt.Sprintf("server %q has no initial block; to add it to a running cluster, use join instead of initial blocks", s.Name))
	}
}
