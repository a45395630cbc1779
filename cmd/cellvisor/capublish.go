package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/trust"
)

func (a *app) caPublishCmd(dir *string) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Send the list of certificates that were taken back to the cluster",
		Long: `Sends ca.crl to the cluster, which keeps it: all servers refuse the certificates on it. It needs an operator's certificate and a list that the cluster's
authority has signed; the authority's key may be elsewhere. "ca revoke" does it by itself where it reaches the cluster. Sending a list again does no harm.`,
		Example: "  cellvisor ca publish\n  cellvisor --context alice.hcl ca publish --file ca.crl",
		Args:    args(0, 0, ""),
		RunE: a.does(func(ctx context.Context, _ []string) error {
			path := file
			if path == "" {
				d, err := a.caDir(*dir)
				if err != nil {
					return err
				}
				path = filepath.Join(d, trust.RevokedFile)
			}
			sent, err := a.publish(ctx, path)
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.json(sent)
			}
			fmt.Fprintln(a.out, publishedText(sent))
			return nil
		}),
	}
	cmd.Flags().StringVar(&file, "file", "", "the list (default ca.crl in the authority's directory)")
	return cmd
}

func publishedText(p view.Revoked) string {
	return fmt.Sprintf("certificates that the cluster refuses now: %d (new: %d)", p.Total, p.Added)
}

// publish hands a list to the cluster.
func (a *app) publish(ctx context.Context, path string) (view.Revoked, error) {
	list, err := os.ReadFile(path)
	if err != nil {
		return view.Revoked{}, fmt.Errorf("no list of certificates that were taken back: %w; `cellvisor ca revoke` makes it", err)
	}
	var out view.Revoked
	c, err := a.dial(ctx)
	if err != nil {
		return out, err
	}
	defer c.Close()
	err = c.Call(ctx, func(ctx context.Context, svc api.CellvisorClient) error {
		r, err := svc.Revoke(ctx, &api.RevokeRequest{List: list})
		out = view.OfRevoked(r)
		return err
	})
	return out, err
}

// publishAfterRevoke sends the list to the cluster that is named, or to the local one if the authority is its own; else it says what to do.
func (a *app) publishAfterRevoke(ctx context.Context, authority *trust.Authority) error {
	path := filepath.Join(authority.Dir, trust.RevokedFile)
	named := cmp.Or(a.addr, os.Getenv("CELLVISOR_ADDR"), a.context, os.Getenv("CELLVISOR_CONTEXT")) != ""
	if !named && !a.ownsLocal(authority) {
		fmt.Fprintf(a.err, "not sent: no cluster is named by --addr or --context, and there is no local one of this authority; `cellvisor ca publish --file %s` sends it, or copy it beside each server's %s\n",
			path, trust.BundleFile)
		return nil
	}
	sent, err := a.publish(ctx, path)
	if err != nil {
		return fmt.Errorf("the list is in %s, but the cluster did not take it: %w; `cellvisor ca publish` sends it again", path, err)
	}
	fmt.Fprintln(a.err, publishedText(sent))
	return nil
}

// ownsLocal tells whether the authority is that of the local cluster.
func (a *app) ownsLocal(authority *trust.Authority) bool {
	dir, err := a.dir("")
	if err != nil {
		return false
	}
	l, err := local.Load(dir)
	return err == nil && l.ID == authority.Cluster
}
