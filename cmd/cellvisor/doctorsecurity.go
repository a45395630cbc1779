package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/jail"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/trust"
	"github.com/cellvisor/cellvisor/vmm/probe"
)

// defaultConfig is where packages have a server's configuration.
const defaultConfig = "/etc/cellvisor/server.hcl"

// expiresSoon is how long before its end a certificate is worth a word.
const expiresSoon = 30 * 24 * time.Hour

// securityChecks looks at the jail, and at the certificates of the server whose configuration is named, of that of this machine, or of the local cluster.
func (a *app) securityChecks(path string, now time.Time) []probe.Check {
	if _, err := os.Stat(defaultConfig); path == "" && err == nil {
		path = defaultConfig
	}
	if path == "" {
		return append([]probe.Check{jailCheck(""), groupsCheck("")}, a.localCertificates(now)...)
	}
	cfg, err := config.Load(path)
	if err != nil {
		return []probe.Check{jailCheck(""), {Name: "configuration", Needed: true, Detail: err.Error(), Fix: "mend " + path}}
	}
	checks := []probe.Check{jailCheck(cfg.WorkerUser), groupsCheck(cfg.Cgroup)}
	if cfg.TLS != (config.TLS{}) {
		want := trust.Identity{Cluster: cfg.ClusterID, Role: trust.RoleServer, Name: string(cfg.Name)}
		checks = append(checks, certificateCheck(trust.Files(cfg.TLS), want, now))
	}
	return checks
}

func (a *app) localCertificates(now time.Time) []probe.Check {
	dir, err := a.dir("")
	if err != nil {
		return nil
	}
	l, err := local.Load(dir)
	if err != nil || l.OperatorFiles() == (trust.Files{}) {
		return nil
	}
	return []probe.Check{certificateCheck(l.OperatorFiles(), trust.Identity{}, now)}
}

func jailCheck(user string) probe.Check {
	c := probe.Check{Name: "jail", OK: true}
	owner, err := jail.FindOwner(user)
	switch unsupported := jail.Supported(); {
	case unsupported != nil:
		c.OK, c.Detail, c.Fix = false, unsupported.Error(), `a kernel with CONFIG_SECCOMP_FILTER; or jail = "off" in the block security, which leaves workers unconfined`
	case err != nil:
		c.OK, c.Detail, c.Fix = false, err.Error(), "make that user, or leave worker_user out"
	case os.Geteuid() != 0:
		c.Detail = "workers are confined by a system call filter; they run as the user of serve, since that is not root"
	default:
		c.Detail = fmt.Sprintf("workers are confined by a system call filter and run as user %d", owner.UID)
	}
	return c
}

// groupsCheck says whether workers' memory and threads can be bounded. dir is what the configuration names.
func groupsCheck(dir string) probe.Check {
	c := probe.Check{Name: "limits"}
	why := jail.GroupsWhy()
	switch {
	case dir == config.CgroupOff:
		c.OK, c.Detail = true, "switched off by the configuration: workers' memory and threads are not bounded"
	case dir != "":
		_, err := os.Stat(filepath.Join(dir, "cgroup.controllers"))
		if c.OK = err == nil; !c.OK {
			c.Needed, c.Detail, c.Fix = true, fmt.Sprintf("%s is no directory of control groups of version 2", dir), "mend `cgroup` in the block security, or leave it out"
			break
		}
		c.Detail = "workers' memory and threads are bounded, below " + dir
	case why != nil:
		c.Detail, c.Fix = why.Error(), "boot with systemd.unified_cgroup_hierarchy=1; workers are jailed all the same, only what they take is not bounded"
	default:
		c.OK, c.Detail = true, "there for a serve that systemd delegates a group to (the packaged unit, systemd 254 or newer), or whose configuration names one"
	}
	return c
}

// certificateCheck tries the files of a holder, who must be want unless that is empty.
func certificateCheck(f trust.Files, want trust.Identity, now time.Time) probe.Check {
	c := probe.Check{Name: "certificate", Needed: want != trust.Identity{}}
	renew := fmt.Sprintf("`cellvisor ca issue %s --role %s --renew` in the authority's directory, and copy the files here", cmp.Or(want.Name, "operator"), cmp.Or(string(want.Role), "operator"))
	keys, err := trust.Load(f)
	if err != nil {
		c.Detail, c.Fix = err.Error(), renew
		if errors.Is(err, os.ErrPermission) {
			c.Fix = "run doctor as the user that serve runs as, who must be able to read it"
		}
		return c
	}
	is := keys.Identity()
	left := keys.Expires().Sub(now)
	switch err := keys.Trusted(); {
	case want != trust.Identity{} && is != want:
		c.Detail = fmt.Sprintf("%s is that of %s of cluster %s, this is %s of cluster %s", f.Cert, is, is.Cluster, want, want.Cluster)
		c.Fix = renew
	case err != nil:
		c.Detail, c.Fix = fmt.Sprintf("others refuse %s: %v", f.Cert, err), renew
	case left < expiresSoon:
		c.Needed = false
		c.Detail, c.Fix = fmt.Sprintf("%s expires in %d days, at %s", f.Cert, int(left.Hours()/24), keys.Expires().Format(time.DateOnly)), renew
	default:
		c.OK, c.Detail = true, fmt.Sprintf("%s of cluster %.8s…, until %s", is, is.Cluster, keys.Expires().Format(time.DateOnly))
	}
	return c
}
