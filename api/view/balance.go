package view

import "github.com/cellvisor/cellvisor/api"

// Balance is `balance show -o json`, and what `balance mode` prints.
type Balance struct {
	Mode    string       `json:"mode"`
	Score   float64      `json:"score"`
	Root    string       `json:"root"`
	Depth   uint32       `json:"depth"`
	Servers []ServerLoad `json:"servers"`
}

// ServerLoad is one server of Balance.
type ServerLoad struct {
	Server   string `json:"server"`
	Cell     string `json:"cell"`
	Slots    uint32 `json:"slots"`
	VCPUs    uint32 `json:"vcpus"`
	Busy     uint32 `json:"busy"`
	Cordoned bool   `json:"cordoned"`
	Parent   string `json:"parent"`
}

// OfBalance converts an answer to Balance.
func OfBalance(b *api.BalanceResponse) Balance {
	return Balance{Mode: b.GetMode(), Score: float64(b.GetScore()) / 1000, Root: b.GetRoot(), Depth: b.GetDepth(), Servers: Map(b.GetServers(), func(s *api.ServerLoad) ServerLoad {
		return ServerLoad{Server: s.GetServer(), Cell: s.GetCell(), Slots: s.GetSlots(), VCPUs: s.GetVcpus(), Busy: s.GetBusy(), Cordoned: s.GetCordoned(), Parent: s.GetParent()}
	})}
}

// Revoked is `ca publish -o json`.
type Revoked struct {
	Added uint32 `json:"added"`
	Total uint32 `json:"total"`
}

// OfRevoked converts an answer to Revoke.
func OfRevoked(r *api.RevokeResponse) Revoked {
	return Revoked{Added: r.GetAdded(), Total: r.GetTotal()}
}
