package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags -X main.version=…).
var version = "development"

// versionInfo is `version -o json`.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCmd() *cobra.Command {
	var newID bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the program's version",
		Example: "  cellvisor version -o json\n  cellvisor version --new-id    # an ID for a new cluster's configuration",
		Args:    args(0, 0, ""),
		RunE: a.does(func(context.Context, []string) error {
			if newID {
				b := make([]byte, 16)
				rand.Read(b)
				_, err := fmt.Fprintln(a.out, hex.EncodeToString(b))
				return err
			}
			info := buildInfo()
			if a.format == "json" {
				return a.json(info)
			}
			fmt.Fprintf(a.out, "cellvisor %s", info.Version)
			if len(info.Revision) >= 12 {
				fmt.Fprintf(a.out, " (%s)", info.Revision[:12])
			}
			fmt.Fprintf(a.out, " %s %s\n", info.Go, info.Platform)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&newID, "new-id", false, "print a fresh cluster ID instead")
	return cmd
}

func buildInfo() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	return v
}
