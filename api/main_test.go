package api

import (
	"os"
	"testing"

	"github.com/cellvisor/cellvisor/tests/setting"
)

func TestMain(m *testing.M) {
	setting.Plain()
	os.Exit(m.Run())
}
