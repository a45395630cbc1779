package bad

import (
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

func TestX(t *testing.T) {
	for _, n := range Names {
		if n == "spin" {
			continue
		}
		t.Run(n, func(t *testing.T) {
			img, _ := Open(n)
			r := vmmtest.Run(t, img, boot.Config{Memory: 64 * ident.MiB, VCPUs: 2}, 10*time.Second)
			t.Logf("%+v\n%s", r, r.Failure)
		})
	}
}
