// Package drills holds the ready drills. They are part of the program, so that an installed cellvisor has them without this directory.
package drills

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.star
var files embed.FS

// Names lists the ready drills, sorted.
func Names() []string {
	entries, _ := fs.ReadDir(files, ".")
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), ".star"))
	}
	return out
}

// Read returns a ready drill's source.
func Read(name string) ([]byte, error) {
	src, err := files.ReadFile(name + ".star")
	if err != nil {
		return nil, fmt.Errorf("there is no ready drill %q; there are %s", name, strings.Join(Names(), ", "))
	}
	return src, nil
}
