package view

import "github.com/cellvisor/cellvisor/api"

// Disk is an entry of `disk ls -o json`, and `disk show -o json`.
type Disk struct {
	Name   string     `json:"name"`
	VM     string     `json:"vm"`
	Source string     `json:"source"`
	Bytes  uint64     `json:"size_bytes"`
	Copies []DiskCopy `json:"copies"`
}

// DiskCopy is one of its copies.
type DiskCopy struct {
	Server string `json:"server"`
	Cell   string `json:"cell"`
	State  string `json:"state"`
	Home   bool   `json:"home"`
	Live   bool   `json:"live"`
}

// OfDisk converts one disk.
func OfDisk(d *api.DiskInfo) Disk {
	return Disk{Name: d.GetName(), VM: d.GetVm(), Source: d.GetSource(), Bytes: d.GetSizeBytes(), Copies: Map(d.GetCopies(), func(c *api.DiskCopy) DiskCopy {
		return DiskCopy{Server: c.GetServer(), Cell: c.GetCell(), State: c.GetState(), Home: c.GetHome(), Live: c.GetLive()}
	})}
}
