package drill

import (
	"fmt"
	"slices"
	"time"

	"go.starlark.net/starlark"

	"github.com/cellvisor/cellvisor/api"
)

// vmValue is a VM in a drill. Its attributes are read from what was last seen of the cluster.
type vmValue struct {
	run  *run
	name string
}

var vmAttrs = []string{"cells", "epoch", "exit_status", "home", "members", "name", "protection", "reason", "records", "recoveries", "restarts", "standbys", "state"}

func (v *vmValue) String() string        { return v.name }
func (v *vmValue) Type() string          { return "vm" }
func (v *vmValue) Freeze()               {}
func (v *vmValue) Truth() starlark.Bool  { return true }
func (v *vmValue) Hash() (uint32, error) { return starlark.String(v.name).Hash() }
func (v *vmValue) AttrNames() []string   { return vmAttrs }

// Attr implements starlark.HasAttrs.
func (v *vmValue) Attr(name string) (starlark.Value, error) {
	if name == "name" {
		return starlark.String(v.name), nil
	}
	if name == "records" {
		return starlark.MakeUint64(v.run.followers[v.name].length()), nil
	}
	s, err := v.run.see()
	if err != nil {
		return nil, err
	}
	vm := s.vm(v.name)
	if vm == nil {
		return nil, fmt.Errorf("VM %s is not there any more", v.name)
	}
	switch name {
	case "state":
		return starlark.String(vm.GetState().Word()), nil
	case "reason":
		return starlark.String(vm.GetReason()), nil
	case "protection":
		return starlark.String(vm.GetProtection()), nil
	case "recoveries":
		return starlark.MakeUint64(vm.GetRecoveries()), nil
	case "restarts":
		return starlark.MakeUint64(vm.GetRestarts()), nil
	case "epoch":
		return starlark.MakeUint64(vm.GetEpoch()), nil
	case "exit_status":
		return starlark.MakeUint64(uint64(vm.GetExitStatus())), nil
	case "cells":
		return texts(vm.GetCells()), nil
	case "home":
		return starlark.String(vm.GetHome()), nil
	case "members":
		return texts(hosts(vm, false)), nil
	case "standbys":
		return texts(hosts(vm, true)), nil
	}
	return nil, nil // Starlark says which attributes there are
}

// hosts returns the servers of a VM's live parts.
func hosts(vm *api.VM, standby bool) (out []string) {
	for _, w := range vm.GetWorkers() {
		if !w.GetLost() && w.GetStandby() == standby {
			out = append(out, w.GetServer())
		}
	}
	slices.Sort(out)
	return out
}

func texts(list []string) *starlark.List {
	var out []starlark.Value
	for _, s := range list {
		out = append(out, starlark.String(s))
	}
	return starlark.NewList(out)
}

// clusterValue is the cluster as a whole, as cluster() gives it.
type clusterValue struct{ run *run }

var clusterAttrs = []string{"cells", "dead", "epoch", "leader", "live", "quorum", "servers"}

func (c clusterValue) String() string        { return "cluster" }
func (c clusterValue) Type() string          { return "cluster" }
func (c clusterValue) Freeze()               {}
func (c clusterValue) Truth() starlark.Bool  { return true }
func (c clusterValue) Hash() (uint32, error) { return 0, fmt.Errorf("cluster is not hashable") }
func (c clusterValue) AttrNames() []string   { return clusterAttrs }

// Attr implements starlark.HasAttrs.
func (c clusterValue) Attr(name string) (starlark.Value, error) {
	s, err := c.run.see()
	if err != nil {
		return nil, err
	}
	switch name {
	case "epoch":
		return starlark.MakeUint64(s.epoch), nil
	case "leader":
		return starlark.String(s.leader), nil
	case "quorum":
		return starlark.Bool(s.reached && s.quorum), nil
	case "cells":
		return texts(c.run.cells()), nil
	case "servers", "live", "dead":
		var out []string
		for _, v := range s.servers {
			live := v.GetState() == api.ServerState_SERVER_STATE_LIVE
			if name == "servers" || live == (name == "live") {
				out = append(out, v.GetName())
			}
		}
		return texts(out), nil
	}
	return nil, nil
}

// duration reads "1.5s", or a number of milliseconds.
func duration(v starlark.Value) (time.Duration, error) {
	switch v := v.(type) {
	case starlark.Int:
		if n, err := starlark.AsInt32(v); err == nil && n >= 0 {
			return time.Duration(n) * time.Millisecond, nil
		}
	case starlark.String:
		if d, err := time.ParseDuration(string(v)); err == nil && d >= 0 {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%s is no length of time: write \"1.5s\", or a number of milliseconds", v)
}
