// Package config reads the configuration file of a server and writes those of a local cluster. A file is HCL; reading it gives a
// validated Server or an error that names file, line and column and says what is wrong.
//
//	cluster {
//	  name = "prod"
//	  id   = "5f0c…"            # 32 hex digits, the same on all servers
//	  drills = "allow"          # drills may break this server; default: "refuse"
//	}
//	server {
//	  name        = "a-1"        # <cell>-<number>
//	  cell        = "a"          # left out for a witness
//	  role        = "server"     # or "witness"
//	  data_dir    = "/var/lib/cellvisor"
//	  slots       = 8            # usable CPUs; default: all
//	  sched       = "gang"       # or "host": leave vCPUs to Linux
//	  cpus        = [0, 1]       # the slots' CPUs; default: those that the process may use
//	  memory      = "16GiB"      # for guests; default: three quarters of what is available
//	  overcommit  = 1            # promise guests so many times that much; pages that find no room go to files in data_dir
//	  paging      = "48GiB"      # these files together at most; default: what is promised beyond memory
//	  scrub       = "24h"        # all copies of disks here are read and checked so often; "off": never
//	  idle_cpus   = "awake"      # while pages travel; or "sleep": save power, let remote page faults wait for CPUs to wake up
//	  secret_file = "/etc/cellvisor/secret"
//	  nice        = -10
//	}
//	listen {
//	  peer   = "10.0.0.1:7701"   # agreement and control between servers
//	  gossip = "10.0.0.1:7702"   # membership hints
//	  pages  = "10.0.0.1"        # workers take ports of their own on this address
//	  api    = "unix:///run/cellvisor/api.sock"
//	  api_tcp = "127.0.0.1:7700" # optional
//	}
//	initial "a-1" {              # one block for each server the cluster begins with, the same in all files
//	  id     = 1
//	  cell   = "a"
//	  peer   = "10.0.0.1:7701"
//	  gossip = "10.0.0.1:7702"
//	}
//	join = ["10.0.0.1:7701"]     # instead of initial blocks, for a server that is added later
//	tls {                        # needed off loopback, see `cellvisor ca`
//	  ca   = "/etc/cellvisor/tls/ca.crt"
//	  cert = "/etc/cellvisor/tls/a-1.crt"
//	  key  = "/etc/cellvisor/tls/a-1.key"
//	}
//	security {
//	  page_encryption = "on"     # or "off": page traffic is authenticated only
//	  jail            = "on"     # or "off": workers run with all that serve may do
//	  cgroup          = "/sys/fs/cgroup/cellvisor" # where workers get control groups that bound their memory and threads; default: what systemd delegated; "off"
//	  worker_user     = "cellvisor" # whom workers run as if serve is root; default: cellvisor if there is one, else nobody
//	}
//	log {
//	  format = "json"            # "text" or "json"; default: text on a terminal, json otherwise
//	  level  = "info"
//	}
package config

import (
	"time"

	"github.com/cellvisor/cellvisor/ident"
)

// Role says what a server does.
type Role string

// Roles.
const (
	RoleServer  Role = "server"  // votes or learns, runs VMs
	RoleWitness Role = "witness" // only votes, belongs to no cell
)

// Sched says how vCPUs share the slots of a server.
type Sched string

// Schedulers.
const (
	SchedGang Sched = "gang" // the vCPUs of a VM run together or not at all, once the VMs have more vCPUs than there are slots
	SchedHost Sched = "host" // all is left to Linux
)

// IdleCPUs says what idle CPUs may do while pages travel between servers.
type IdleCPUs string

// What idle CPUs do meanwhile.
const (
	IdleAwake IdleCPUs = "awake" // poll, so that they wake at once
	IdleSleep IdleCPUs = "sleep" // save power
)

// Server is a validated configuration of one serve process. All paths are absolute.
type Server struct {
	File string // where it was read from; for messages

	ClusterID   string // 32 hex digits
	ClusterName string
	Drills      bool // drills may break this server

	ID      ident.ServerID // from the initial block of this server's name; 0 if it joins a cluster later
	Name    ident.ServerName
	Cell    ident.CellName // empty for a witness
	Role    Role
	DataDir string

	Slots       int           // vCPUs that may run at a time; 0 for a witness
	MemoryBytes ident.Bytes   // for guests; 0 for a witness
	Sched       Sched         // how vCPUs share the slots
	Overcommit  int           // so many times the memory is promised to guests, which get it as they touch it; at least 1
	PagingBytes ident.Bytes   // of paging files, for what is promised and not there
	Lend        bool          // memory to other servers, and borrow from them
	IdleCPUs    IdleCPUs      // while pages travel
	Scrub       time.Duration // from one check of all copies of disks here to the next; 0: never
	CPUs        []int         // of the slots, in order; empty: those that the process may use
	SecretFile  string        // empty: peers are not authenticated (refused unless all addresses are loopback)
	Secret      []byte        // contents of SecretFile without surrounding white space
	Nice        int           // of the serve process; failing to set it is no error

	TLS            TLS         // who this server is to others; empty: nobody can tell (refused unless all addresses are loopback)
	PageEncryption bool        // of page traffic between workers
	Jail           bool        // workers may do only what workers do
	Cgroup         string      // directory for workers' control groups; empty: what systemd delegated; CgroupOff: none
	WorkerUser     string      // whom workers run as, if serve is root; empty: DefaultWorkerUser
	AuditBytes     ident.Bytes // that the audit log may take; 0: the default

	Listen  Listen
	Initial []Peer   // the servers that the cluster begins with, this one included, by rising ID; empty if it joins
	Join    []string // peer addresses of a running cluster, tried in turn; empty if it is an initial server
	Log     Log
	Timing  Timing
	Health  Health
}

// TLS names the files of a server's certificate.
type TLS struct {
	CA, Cert, Key string
}

// Listen holds the addresses that a server listens on. Host:port, except where said.
type Listen struct {
	Peer    string // agreement and control between servers
	Gossip  string // membership hints, TCP and UDP
	Pages   string // host only: workers take ports of their own
	APIUnix string // path of the API's Unix socket
	APITCP  string // further API endpoint, empty for none
	Metrics string // HTTP endpoint for Prometheus, empty for none
}

// Peer is one server that the cluster begins with.
type Peer struct {
	ID     ident.ServerID
	Name   ident.ServerName
	Cell   ident.CellName
	Role   Role
	Voter  bool // has a vote from the start; otherwise a learner
	Peer   string
	Gossip string
}

// Log says how a server logs. It logs to standard error.
type Log struct {
	Format string // "text", "json", or "" for text on a terminal and json otherwise
	Level  string // "debug", "info", "warn", "error"
}

// Timing holds the periods of agreement. The defaults suit one machine and one data centre.
type Timing struct {
	LeaseLength time.Duration // a server may run guests this long after its last contact with a quorum
	LeaseRenew  time.Duration // period of renewal
	Heartbeat   time.Duration // period of the leader's heartbeats
	ElectionMin time.Duration // shortest silence of the leader before a server stands for election
}

// DefaultTiming is used for what a file does not set.
func DefaultTiming() Timing {
	return Timing{
		LeaseLength: 1500 * time.Millisecond,
		LeaseRenew:  100 * time.Millisecond,
		Heartbeat:   50 * time.Millisecond,
		ElectionMin: 250 * time.Millisecond,
	}
}
