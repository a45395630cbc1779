package view

import (
	"github.com/cellvisor/cellvisor/api"
)

// ServerDetail is `server show -o json`.
type ServerDetail struct {
	Server
	Counters map[string]uint64 `json:"counters"`
}

// OfServerDetail joins a server with its counters, nil if it did not tell them.
func OfServerDetail(s *api.Server, counters map[string]uint64) ServerDetail {
	if counters == nil {
		counters = map[string]uint64{}
	}
	return ServerDetail{Server: OfServer(s), Counters: counters}
}

// Slices is `server slices -o json`.
type Slices struct {
	Server    string  `json:"server"`
	NowMicros uint64  `json:"now_micros"`
	Slots     uint32  `json:"slots"`
	Conducted bool    `json:"conducted"`
	Slices    []Slice `json:"slices"`
}

// Slice is an entry of Slices.
type Slice struct {
	VM          string   `json:"vm"`
	VMID        uint64   `json:"vm_id"`
	Number      uint64   `json:"number"`
	BeginMicros uint64   `json:"begin_micros"`
	EndMicros   uint64   `json:"end_micros"`
	SlotsTaken  []uint32 `json:"slots_taken"`
	With        []string `json:"with"`
}

// OfSlices converts the turns of a server.
func OfSlices(r *api.SlicesResponse) Slices {
	return Slices{
		Server: r.GetServer(), NowMicros: r.GetNowMicros(), Slots: r.GetSlots(), Conducted: r.GetConducted(),
		Slices: Map(r.GetSlices(), func(s *api.Slice) Slice {
			return Slice{VM: s.GetVm(), VMID: s.GetVmId(), Number: s.GetNumber(), BeginMicros: s.GetBeginMicros(), EndMicros: s.GetEndMicros(),
				SlotsTaken: list(s.GetSlots()), With: list(s.GetWith())}
		}),
	}
}

// PageMap is `vm pages -o json`.
type PageMap struct {
	VMID           uint64       `json:"vm_id"`
	Pages          uint64       `json:"pages"`
	PagesPerRegion uint64       `json:"pages_per_region"`
	Holders        []PageHolder `json:"holders"`
}

// PageHolder is an entry of PageMap.
type PageHolder struct {
	Part     uint32   `json:"part"`
	Server   string   `json:"server"`
	Cell     string   `json:"cell"`
	Standby  bool     `json:"standby"`
	Shared   []uint32 `json:"shared"`
	Modified []uint32 `json:"modified"`
}

// OfPageMap converts the map of a VM's pages.
func OfPageMap(m *api.PageMapResponse) PageMap {
	return PageMap{VMID: m.GetVmId(), Pages: m.GetPages(), PagesPerRegion: m.GetPagesPerRegion(),
		Holders: Map(m.GetHolders(), func(h *api.PageHolder) PageHolder {
			return PageHolder{Part: h.GetPart(), Server: h.GetServer(), Cell: h.GetCell(), Standby: h.GetStandby(), Shared: list(h.GetShared()), Modified: list(h.GetModified())}
		}),
	}
}
