package wire

import "github.com/cellvisor/cellvisor/ident"

// OptionLocality is the option of a VM that says what is done about pages that other servers hold.
const OptionLocality = "locality"

// WorkerWish is home's wish that a vCPU should go to another part, where its pages are.
type WorkerWish struct {
	VCPU ident.VCPU `json:"vcpu"`
	To   ident.Part `json:"to"`
}

// WorkerLocality tells what vCPUs of a part wait for, and what was done about it.
type WorkerLocality struct {
	Policy string            `json:"policy"`
	Ahead  uint64            `json:"ahead"`           // pages that came before anybody touched them
	Moved  uint64            `json:"moved,omitempty"` // at home: vCPUs that went to where their pages are
	Homes  uint64            `json:"homes,omitempty"` // regions whose directory went from here to where requests come from
	Hot    []WorkerHotRegion `json:"hot,omitempty"`   // regions that are waited for most, hottest first
}

// WorkerHotRegion is a region of pages that a part's vCPUs wait for.
type WorkerHotRegion struct {
	Page         ident.PageNo `json:"page"` // the first of Pages
	Pages        int          `json:"pages"`
	Faults       int          `json:"faults"`        // lately
	WaitedMicros ident.Micros `json:"waited_micros"` // lately
	VCPU         *ident.VCPU  `json:"vcpu,omitempty"`
	Peer         ident.Part   `json:"peer"` // that most of it comes from
	Around       bool         `json:"around,omitempty"`
}
