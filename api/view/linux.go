package view

import (
	"encoding/hex"

	"github.com/cellvisor/cellvisor/api"
)

// Linux is what a Linux guest is started with.
type Linux struct {
	Kernel  string `json:"kernel_sha256"`
	Initrd  string `json:"initrd_sha256,omitempty"`
	Cmdline string `json:"cmdline"`
	CPU     string `json:"cpu"`
}

func ofLinux(l *api.LinuxGuest) *Linux {
	if l == nil {
		return nil
	}
	return &Linux{
		Kernel: hex.EncodeToString(l.GetKernel().GetSha256()), Initrd: hex.EncodeToString(l.GetInitrd().GetSha256()), Cmdline: l.GetCmdline(), CPU: l.GetCpu(),
	}
}
