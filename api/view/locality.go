package view

import "github.com/cellvisor/cellvisor/api"

// Locality tells what the vCPUs of a worker wait for pages of other servers, and what was done about it.
type Locality struct {
	Policy string      `json:"policy"`
	Ahead  uint64      `json:"ahead"`
	Moved  uint64      `json:"moved"`
	Homes  uint64      `json:"homes"`
	Hot    []HotRegion `json:"hot"`
}

// HotRegion is a region of pages that is waited for.
type HotRegion struct {
	Page         uint64  `json:"page"`
	Pages        uint32  `json:"pages"`
	Faults       uint32  `json:"faults"`
	WaitedMicros uint64  `json:"waited_micros"`
	VCPU         *uint32 `json:"vcpu,omitempty"`
	From         string  `json:"from"`
	Around       bool    `json:"around"`
}

func ofLocality(l *api.LocalityCounters) *Locality {
	if l == nil {
		return nil
	}
	out := &Locality{Policy: l.GetPolicy(), Ahead: l.GetAhead(), Moved: l.GetMoved(), Homes: l.GetHomes(), Hot: []HotRegion{}}
	for _, h := range l.GetHot() {
		out.Hot = append(out.Hot, HotRegion{Page: h.GetPage(), Pages: h.GetPages(), Faults: h.GetFaults(), WaitedMicros: h.GetWaitedMicros(), VCPU: h.Vcpu,
			From: h.GetFrom(), Around: h.GetAround()})
	}
	return out
}
