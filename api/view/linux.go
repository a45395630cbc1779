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
	Nets    []Net  `json:"nets,omitempty"`
}

// Net is a network card.
type Net struct {
	Switch string `json:"switch,omitempty"`
	TAP    string `json:"tap,omitempty"`
	MAC    string `json:"mac"`
}

func ofLinux(v *api.VM) *Linux {
	l := v.GetLinux()
	if l == nil {
		return nil
	}
	nets := Map(v.GetNets(), func(n *api.Net) Net { return Net{Switch: n.GetSwitch(), TAP: n.GetTap(), MAC: n.GetMac()} })
	return &Linux{
		Nets: nets, Kernel: hex.EncodeToString(l.GetKernel().GetSha256()), Initrd: hex.EncodeToString(l.GetInitrd().GetSha256()), Cmdline: l.GetCmdline(), CPU: l.GetCpu(),
	}
}
