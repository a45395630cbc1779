package monitor

import (
	"fmt"
	"slices"

	"github.com/cellvisor/cellvisor/balancer"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// DisksOf is what the worker on a server is told about its VM's disks.
func DisksOf(st *cells.State, vm *cells.VM, server ident.ServerID) []wire.WorkerDisk {
	var out []wire.WorkerDisk
	for _, want := range vm.Spec.Disks {
		d := st.Disk(want.Name)
		if d == nil {
			continue // it was removed: then its VM has ended
		}
		w := wire.WorkerDisk{Name: d.Name, Dir: fmt.Sprintf("%s-%d", d.Name, d.ID), Source: d.Source, Bytes: d.Bytes, Cache: string(want.Cache), ReadOnly: want.ReadOnly}
		if vm.Spec.Protect != cells.ProtectReplica {
			w.Mirrors = want.Mirrors
		}
		if c := d.CopyOn(server); c != nil {
			w.Use, w.Confirmed = c.Use, c.Confirmed
		}
		out = append(out, w)
	}
	return out
}

// placeAt places a VM so that its home is on one of the given servers, which have its disks.
func placeAt(servers []balancer.Server, req balancer.Request, homes []ident.ServerID) (parts []balancer.Part, err error) {
	for _, home := range homes {
		i := slices.IndexFunc(servers, func(s balancer.Server) bool { return s.ID == home })
		if i < 0 {
			continue
		}
		open := slices.Clone(servers)
		for j := range open { // nothing but the home takes parts in its cell, or, if placement chooses, at all
			if open[j].ID != home && (len(req.Span) == 0 || open[j].Cell == servers[i].Cell) {
				open[j].Open = false
			}
		}
		if parts, err = balancer.Place(open, req); err != nil {
			continue
		}
		if at := slices.IndexFunc(parts, func(p balancer.Part) bool { return p.Server == home }); at >= 0 {
			parts[0], parts[at] = parts[at], parts[0]
			return parts, nil
		}
		err = fmt.Errorf("its disks are on server %s, outside of the cells that it is to span", servers[i].Name)
	}
	return nil, err
}

// placeMirrors places the mirrors that a VM without replicas lacks: in cells other than home's, on servers that have no part of the VM. They hold no
// memory of it.
func placeMirrors(st *cells.State, vm *cells.VM) []ident.ServerID {
	servers := serversForPlacement(st)
	home := slices.IndexFunc(vm.Parts, func(p cells.VMPart) bool { return p.Part == vm.Home && !p.Standby })
	if home < 0 {
		return nil
	}
	cell := vm.Parts[home].Cell
	req := balancer.StandbyRequest{Replicas: vm.Spec.Mirrors()}
	for _, p := range vm.Parts {
		if p.Mirror && p.Cell != cell {
			req.Standbys = append(req.Standbys, p.Server)
		}
	}
	for i := range servers {
		s := &servers[i]
		s.Open = s.Open && s.Cell != cell && !slices.ContainsFunc(vm.Parts, func(p cells.VMPart) bool { return p.Server == s.ID && !p.Gone })
	}
	return balancer.PlaceStandbys(servers, req)
}

// protection is what the workers of a VM are told about its standbys.
func protection(vm *cells.VM) wire.WorkerProtect {
	m := wire.WorkerProtect{Seq: vm.ProtectSeq, Home: vm.Home, CheckpointMillis: vm.Spec.CheckpointMillis, Kept: vm.Spec.Protect == cells.ProtectReplica}
	for _, p := range vm.Parts {
		switch {
		case p.Gone || p.Standby && !p.Ready:
			continue
		case p.Mirror:
			m.Mirrors = m.Mirrors.Set(p.Part)
		case p.Standby:
			m.Standbys = m.Standbys.Set(p.Part)
		}
		m.Members = append(m.Members, wire.WorkerMember{Part: p.Part, Server: p.Server, Name: p.ServerName, Addr: p.Addr, ReplicaAddr: p.ReplicaAddr})
	}
	return m
}

func (c *Core) workerDisks(e WorkerDisks) {
	w := c.workerOf(e.VM)
	if w == nil {
		return
	}
	if e.Disks.Opened {
		w.disks = true
		c.dirty = true
	}
	say := func(kind cells.EventKind, text string) {
		if text != "" {
			text = fmt.Sprintf("disk %s on %s: %s", e.Disks.Disk, c.cfg.Info.Name, text)
			c.propose("", cells.Command{Report: &cells.Report{Kind: kind, Subject: "disk " + e.Disks.Disk, Text: text}})
		}
	}
	say(cells.EventDiskDamaged, e.Disks.Damaged)
	say(cells.EventDiskRepaired, e.Disks.Repaired)
}
