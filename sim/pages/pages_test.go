package pages

import (
	"testing"

	"github.com/cellvisor/cellvisor/sim/simtest"
)

func TestPages(t *testing.T)      { simtest.Seeds(t, "pages", 200) }
func TestReboot(t *testing.T)     { simtest.Seeds(t, "reboot", 300) }
func TestPagesCrash(t *testing.T) { simtest.Seeds(t, "pages-crash", 200) }
