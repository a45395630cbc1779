package config

import (
	"github.com/cellvisor/cellvisor/ident"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// Format writes s as a configuration file that Parse reads back to the same values.
func Format(s *Server) []byte {
	f := hclwrite.NewEmptyFile()
	b := f.Body().AppendNewBlock("cluster", nil).Body()
	setString(b, "name", s.ClusterName)
	setString(b, "id", s.ClusterID)
	if s.Drills {
		setString(b, "drills", "allow")
	}

	b = f.Body().AppendNewBlock("server", nil).Body()
	setString(b, "name", string(s.Name))
	setString(b, "cell", string(s.Cell))
	if s.Role != RoleServer {
		setString(b, "role", string(s.Role))
	}
	setString(b, "data_dir", s.DataDir)
	if s.Role == RoleServer {
		formatVMs(b, s)
	}
	setString(b, "secret_file", s.SecretFile)
	b.SetAttributeValue("nice", cty.NumberIntVal(int64(s.Nice)))

	b = f.Body().AppendNewBlock("listen", nil).Body()
	setString(b, "peer", s.Listen.Peer)
	setString(b, "gossip", s.Listen.Gossip)
	setString(b, "pages", s.Listen.Pages)
	setString(b, "api", "unix://"+s.Listen.APIUnix)
	setString(b, "api_tcp", s.Listen.APITCP)
	setString(b, "metrics", s.Listen.Metrics)

	formatSecurity(f, s)
	formatHealth(f, &s.Health)
	formatInitial(f, s.Initial)
	if len(s.Join) > 0 {
		var vals []cty.Value
		for _, a := range s.Join {
			vals = append(vals, cty.StringVal(a))
		}
		f.Body().SetAttributeValue("join", cty.ListVal(vals))
	}
	if s.Log.Format != "" || s.Log.Level != "" {
		b = f.Body().AppendNewBlock("log", nil).Body()
		setString(b, "format", s.Log.Format)
		setString(b, "level", s.Log.Level)
	}
	if s.Timing != DefaultTiming() {
		b = f.Body().AppendNewBlock("timing", nil).Body()
		setString(b, "lease_length", s.Timing.LeaseLength.String())
		setString(b, "lease_renew", s.Timing.LeaseRenew.String())
		setString(b, "heartbeat", s.Timing.Heartbeat.String())
		setString(b, "election_min", s.Timing.ElectionMin.String())
	}
	return f.Bytes()
}

func formatSecurity(f *hclwrite.File, s *Server) {
	if s.TLS != (TLS{}) {
		b := f.Body().AppendNewBlock("tls", nil).Body()
		setString(b, "ca", s.TLS.CA)
		setString(b, "cert", s.TLS.Cert)
		setString(b, "key", s.TLS.Key)
	}
	if s.PageEncryption && s.Jail && s.WorkerUser == "" && s.Cgroup == "" && s.AuditBytes == 0 {
		return
	}
	b := f.Body().AppendNewBlock("security", nil).Body()
	if !s.PageEncryption {
		setString(b, "page_encryption", "off")
	}
	if !s.Jail {
		setString(b, "jail", "off")
	}
	setString(b, "worker_user", s.WorkerUser)
	setString(b, "cgroup", s.Cgroup)
	if s.AuditBytes != 0 {
		setString(b, "audit_max", s.AuditBytes.String())
	}
}

// formatInitial writes a block for each server that the cluster begins with.
func formatInitial(f *hclwrite.File, peers []Peer) {
	for _, p := range peers {
		b := f.Body().AppendNewBlock("initial", []string{string(p.Name)}).Body()
		b.SetAttributeValue("id", cty.NumberUIntVal(uint64(p.ID)))
		setString(b, "cell", string(p.Cell))
		if p.Role != RoleServer {
			setString(b, "role", string(p.Role))
		}
		if !p.Voter {
			b.SetAttributeValue("voter", cty.False)
		}
		setString(b, "peer", p.Peer)
		setString(b, "gossip", p.Gossip)
	}
}

// setString leaves an empty value out.
func setString(b *hclwrite.Body, name, value string) {
	if value != "" {
		b.SetAttributeValue(name, cty.StringVal(value))
	}
}

// formatVMs writes what a server offers to VMs.
func formatVMs(b *hclwrite.Body, s *Server) {
	b.SetAttributeValue("slots", cty.NumberIntVal(int64(s.Slots)))
	if s.Sched != SchedGang {
		setString(b, "sched", string(s.Sched))
	}
	if len(s.CPUs) > 0 {
		var vals []cty.Value
		for _, c := range s.CPUs {
			vals = append(vals, cty.NumberIntVal(int64(c)))
		}
		b.SetAttributeValue("cpus", cty.ListVal(vals))
	}
	setString(b, "memory", s.MemoryBytes.String())
	if s.Overcommit > 1 {
		b.SetAttributeValue("overcommit", cty.NumberIntVal(int64(s.Overcommit)))
		if s.PagingBytes > 0 && s.PagingBytes != s.MemoryBytes*ident.Bytes(s.Overcommit-1) {
			setString(b, "paging", s.PagingBytes.String())
		}
	}
	if s.Lend {
		setString(b, "lend", "on")
	}
	if s.Scrub > 0 && s.Scrub != defaultScrub {
		setString(b, "scrub", s.Scrub.String())
	}
	if s.IdleCPUs == IdleSleep {
		setString(b, "idle_cpus", string(s.IdleCPUs))
	}
}
