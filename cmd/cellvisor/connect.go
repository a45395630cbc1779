package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/local"
	"github.com/cellvisor/cellvisor/trust"
)

func (a *app) dial(ctx context.Context) (*api.Client, error) {
	addr, err := a.address()
	if err != nil {
		return nil, err
	}
	keys, err := a.clientTLS()
	if err != nil {
		return nil, err
	}
	return api.DialTLS(ctx, addr, keys)
}

// address finds the cluster: --addr, CELLVISOR_ADDR, that of the context, the local cluster in CELLVISOR_DIR, the one in the default directory.
func (a *app) address() (string, error) {
	c, err := a.loadContext()
	if err != nil {
		return "", err
	}
	if a.context != "" && a.addr == "" {
		a.addr = c.Addr // named on the command line, it goes before the environment
	}
	if a.addr = cmp.Or(a.addr, os.Getenv("CELLVISOR_ADDR"), c.Addr); a.addr != "" {
		if _, err := api.ParseAddrs(a.addr); err != nil {
			return "", usageError{err}
		}
		return a.addr, nil
	}
	dir, err := a.dir("")
	if err != nil {
		return "", err
	}
	l, err := local.Load(dir)
	if errors.Is(err, local.ErrNoCluster) {
		return "", fmt.Errorf("no cluster is named by --addr, CELLVISOR_ADDR or --context, and there is no local one in %s; `cellvisor up` starts one", dir)
	}
	if err != nil {
		return "", err
	}
	return l.Addrs(), nil
}

// loadContext reads the context file, if one is named.
func (a *app) loadContext() (*config.Context, error) {
	path := cmp.Or(a.context, os.Getenv("CELLVISOR_CONTEXT"))
	if path == "" {
		return &config.Context{}, nil
	}
	return config.LoadContext(path)
}

// clientTLS finds the certificate to show on TCP: flags, environment, context, that of the local cluster; nil if there is none.
func (a *app) clientTLS() (*tls.Config, error) {
	c, err := a.loadContext()
	if err != nil {
		return nil, err
	}
	files := trust.Files{
		CA:   cmp.Or(a.tls.CA, os.Getenv("CELLVISOR_CA"), c.TLS.CA),
		Cert: cmp.Or(a.tls.Cert, os.Getenv("CELLVISOR_CERT"), c.TLS.Cert),
		Key:  cmp.Or(a.tls.Key, os.Getenv("CELLVISOR_KEY"), c.TLS.Key),
	}
	if files == (trust.Files{}) {
		dir, err := a.dir("")
		if err != nil {
			return nil, err
		}
		l, err := local.Load(dir)
		if err != nil || l.OperatorFiles() == (trust.Files{}) {
			return nil, nil
		}
		files = l.OperatorFiles()
	}
	if files.CA == "" || files.Cert == "" || files.Key == "" {
		return nil, usagef("--ca, --cert and --key belong together: name all three, or a --context that does")
	}
	keys, err := trust.Load(files)
	if err != nil {
		return nil, err
	}
	return keys.ClientTLS(), nil
}
