package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/trust"
)

// caCmd groups what an operator does with the cluster's certificate authority. It works on files; only the list of
// what was taken back is sent to a cluster.
func (a *app) caCmd() *cobra.Command {
	var dir string
	c := a.noun("ca", "Say who may be a server, an operator or a viewer of a cluster",
		a.caInitCmd(&dir), a.caIssueCmd(&dir), a.caRevokeCmd(&dir), a.caPublishCmd(&dir), a.caRotateCmd(&dir), a.caShowCmd(&dir))
	c.PersistentFlags().StringVar(&dir, "dir", "", "directory of the authority (default that of the local cluster, else ./tls)")
	return c
}

// caDir is the directory of the authority to work on.
func (a *app) caDir(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	dir, err := a.dir("")
	if err != nil {
		return "", err
	}
	if l, err := local.Load(dir); err == nil && l.OperatorFiles() != (trust.Files{}) {
		return filepath.Dir(l.OperatorFiles().CA), nil
	}
	return filepath.Abs("tls")
}

func (a *app) caInitCmd(dir *string) *cobra.Command {
	var cluster string
	var days int
	cmd := &cobra.Command{
		Use:   "init --cluster ID",
		Short: "Make the certificate authority of a cluster",
		Long: `Makes an authority: ca.crt, which every server and client gets, and ca.key, which signs certificates and should leave this directory only to be kept
safe. A local cluster that "up" started has one already, in DIR/tls.`,
		Example: "  cellvisor ca init --cluster $(cellvisor version --new-id) --dir /root/cellvisor-ca",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error {
			if cluster == "" {
				return usagef("--cluster is missing: the id in the block cluster of the servers' configuration")
			}
			return checkDays(days)
		},
		RunE: a.does(func(context.Context, []string) error {
			path := cmp.Or(*dir, "tls")
			authority, err := trust.Create(path, cluster, validity(days))
			if err != nil {
				return err
			}
			return a.showAuthority(authority)
		}),
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "id of the cluster, 32 hexadecimal digits")
	cmd.Flags().IntVar(&days, "days", int(trust.DefaultAuthorityValidity/(24*time.Hour)), "for how long it is valid")
	return cmd
}

func checkDays(days int) error {
	if days < 1 || days > 36500 {
		return usagef("--days %d must be from 1 to 36500", days)
	}
	return nil
}

func validity(days int) time.Duration { return time.Duration(days) * 24 * time.Hour }

func (a *app) caIssueCmd(dir *string) *cobra.Command {
	var role, addr string
	var days int
	var renew bool
	cmd := &cobra.Command{
		Use:   "issue NAME --role server|operator|viewer",
		Short: "Make a certificate for a server, an operator or a viewer",
		Long: `Writes NAME.crt and NAME.key to the authority's directory. A server's name is that in its configuration. With --addr it also writes NAME.hcl, a context for
"cellvisor --context": whoever gets it needs ca.crt, NAME.crt, NAME.key and NAME.hcl in one directory.

A viewer may look. An operator may do everything. "ca revoke" takes a certificate back; until every server has its list, only the end of its days does.
Give people short ones.`,
		Example: `  cellvisor ca issue a-1 --role server
  cellvisor ca issue alice --role operator --days 30 --addr 10.0.0.1:7700,10.0.0.2:7700
  cellvisor --context tls/alice.hcl status`,
		Args: args(1, 1, "a NAME"),
		PreRunE: func(*cobra.Command, []string) error {
			if role == "" {
				return usagef("--role is missing: server, operator or viewer")
			}
			if addr != "" && role == string(trust.RoleServer) {
				return usagef("--addr is for people: a server has a configuration file")
			}
			return checkDays(days)
		},
		RunE: a.does(func(_ context.Context, got []string) error {
			path, err := a.caDir(*dir)
			if err != nil {
				return err
			}
			authority, err := trust.Open(path)
			if err != nil {
				return err
			}
			f, err := authority.Issue(trust.Role(role), got[0], validity(days), renew)
			if err != nil {
				return err
			}
			if addr != "" {
				text := config.FormatContext(&config.Context{Addr: addr, TLS: config.TLS(f)})
				if err := os.WriteFile(filepath.Join(path, got[0]+".hcl"), text, 0o600); err != nil {
					return err
				}
			}
			return a.showIssued(f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&role, "role", "", "server, operator or viewer")
	fl.StringVar(&addr, "addr", "", "also write a context for a cluster at this address")
	fl.IntVar(&days, "days", int(trust.DefaultValidity/(24*time.Hour)), "for how long it is valid, at most as long as the authority")
	fl.BoolVar(&renew, "renew", false, "replace the certificate and key that are there")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(trust.Roles, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) showIssued(f trust.Files) error {
	if a.format == "json" {
		return a.json(struct {
			CA   string `json:"ca"`
			Cert string `json:"cert"`
			Key  string `json:"key"`
		}{f.CA, f.Cert, f.Key})
	}
	fmt.Fprintln(a.out, f.Cert)
	if a.format != "name" {
		fmt.Fprintln(a.out, f.Key)
	}
	return nil
}

func (a *app) caRevokeCmd(dir *string) *cobra.Command {
	var serial string
	var offline bool
	cmd := &cobra.Command{
		Use:   "revoke NAME | --serial SERIAL",
		Short: "Take a certificate back",
		Long: `Puts a certificate on the list ca.crl, beside ca.crt, and sends the list to the cluster: every server refuses and counts whoever shows the certificate
from then on, and ends the connections that it has within a second of their next use; a server that is away learns of it when it comes back. "ca issue
NAME --renew" gives the same name another certificate.

The cluster is the one that --addr or --context names, or the local one. Where none is in reach of the authority's directory, take ca.crl to a machine
that reaches one and use "ca publish" there, or copy the file to where each server has its ca.crt: servers read it again by themselves.`,
		Example: "  cellvisor ca revoke alice\n  cellvisor ca revoke --serial 5f1c0e… --dir /root/cellvisor-ca --offline",
		Args:    args(0, 1, "a NAME"),
		RunE: a.does(func(ctx context.Context, got []string) error {
			name := ""
			if len(got) == 1 {
				name = got[0]
			}
			if (name == "") == (serial == "") {
				return usagef("name a certificate in the directory, or give --serial: `cellvisor ca show -o wide` lists both")
			}
			path, err := a.caDir(*dir)
			if err != nil {
				return err
			}
			authority, err := trust.Open(path)
			if err != nil {
				return err
			}
			if _, err := authority.Revoke(name, serial, time.Now()); err != nil {
				return err
			}
			if err := a.showAuthority(authority); err != nil || offline {
				return err
			}
			return a.publishAfterRevoke(ctx, authority)
		}),
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "only write the list, talk to no cluster")
	cmd.Flags().StringVar(&serial, "serial", "", "its serial number, of one that is not in the directory")
	return cmd
}

func (a *app) caRotateCmd(dir *string) *cobra.Command {
	var retire bool
	var days int
	cmd := &cobra.Command{
		Use:   "rotate [--retire]",
		Short: "Replace the authority's key, with a time in which old and new certificates are good",
		Long: `Puts a new authority in front of the old one; both are trusted. Then, in this order: copy ca.crt (and ca.crl, if there is one) to every server and client; issue each a new certificate
(ca issue NAME --renew) and copy it there; and last "ca rotate --retire", and copy ca.crt once more. Servers read changed files by themselves, with the
next connection; nothing is restarted and nothing is cut off on the way.`,
		Example: "  cellvisor ca rotate\n  cellvisor ca rotate --retire",
		Args:    args(0, 0, ""),
		PreRunE: func(*cobra.Command, []string) error { return checkDays(days) },
		RunE: a.does(func(context.Context, []string) error {
			path, err := a.caDir(*dir)
			if err != nil {
				return err
			}
			authority, err := trust.Open(path)
			if err == nil && retire {
				err = authority.Retire()
			} else if err == nil {
				err = authority.Rotate(validity(days))
			}
			if err != nil {
				return err
			}
			return a.showAuthority(authority)
		}),
	}
	cmd.Flags().BoolVar(&retire, "retire", false, "stop trusting the old authority")
	cmd.Flags().IntVar(&days, "days", int(trust.DefaultAuthorityValidity/(24*time.Hour)), "for how long the new authority is valid")
	return cmd
}

func (a *app) caShowCmd(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "List the authorities that are trusted and the certificates in the directory",
		Long:    `Lists them with their state. Exit code 1 if one of them is no longer accepted by anyone, unless it was revoked.`,
		Example: "  cellvisor ca show\n  cellvisor ca show --dir /root/cellvisor-ca -o json",
		Args:    args(0, 0, ""),
		RunE: a.does(func(context.Context, []string) error {
			path, err := a.caDir(*dir)
			if err != nil {
				return err
			}
			authority, err := trust.Open(path)
			if err != nil {
				return err
			}
			if err := a.showAuthority(authority); err != nil {
				return err
			}
			list, err := authority.List(time.Now())
			for _, r := range list {
				if r.State != "valid" && r.State != "revoked" {
					return errStale
				}
			}
			return err
		}),
	}
}

// errStale says that a certificate is of no use any more.
var errStale = errors.New("a certificate is no longer accepted: `cellvisor ca issue NAME --role ROLE --renew` replaces it")

func (a *app) showAuthority(authority *trust.Authority) error {
	list, err := authority.List(time.Now())
	if err != nil {
		return err
	}
	return show(a, list, func(r trust.Record) trust.Record { return r }, func(r trust.Record) string { return r.Name }, []column[trust.Record]{
		{"NAME", func(r trust.Record) string { return r.Name }, false},
		{"ROLE", func(r trust.Record) string { return r.Role }, false},
		{"STATE", func(r trust.Record) string { return r.State }, false},
		{"EXPIRES", func(r trust.Record) string { return r.NotAfter.Format(time.DateOnly) }, false},
		{"FILE", func(r trust.Record) string { return r.File }, false},
		{"SERIAL", func(r trust.Record) string { return r.Serial }, true},
	})
}
