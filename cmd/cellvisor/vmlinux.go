package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
)

// linuxMemory is what a Linux guest gets unless --memory says otherwise.
const linuxMemory = "512MiB"

// linuxCrashLimit is how many quick resets in a row end a Linux guest unless --crash-limit says otherwise.
const linuxCrashLimit = 5

// linuxFlags are the options of `vm run` for a Linux guest.
type linuxFlags struct {
	kernel, initrd, cmdline, cpu string
	nets                         []string
}

func (l *linuxFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&l.kernel, "kernel", "", "the guest: a Linux kernel, bzImage or vmlinux")
	fl.StringVar(&l.initrd, "initrd", "", "initial RAM disk of the Linux guest")
	fl.StringVar(&l.cmdline, "cmdline", "console=ttyS0", "kernel command line")
	fl.StringVar(&l.cpu, "cpu", "host", "processor that the Linux guest sees; it moves only to servers that have as much ("+strings.Join(cells.CPUModels, "|")+")")
	fl.StringArrayVar(&l.nets, "net", nil, "network card of the Linux guest, switch=NAME or tap=IFNAME, and mac=ADDRESS after a comma; once for each card")
	_ = cmd.RegisterFlagCompletionFunc("cpu", cobra.FixedCompletions(cells.CPUModels, cobra.ShellCompDirectiveNoFileComp))
}

// check finds what does not fit together.
func (l *linuxFlags) check(f *runFlags) error {
	if l.kernel == "" {
		if l.initrd != "" || len(l.nets) > 0 {
			return usagef("--initrd and --net need --kernel")
		}
		return nil
	}
	if _, err := l.cards(); err != nil {
		return err
	}
	switch {
	case f.payload != "":
		return usagef("--payload and --kernel are two guests: give one")
	case f.args != "":
		return usagef("--args is for payloads: a kernel takes --cmdline")
	case len(l.cmdline) > cells.MaxCmdlineBytes:
		return usagef("--cmdline has %d bytes, at most %d are allowed", len(l.cmdline), cells.MaxCmdlineBytes)
	case !slices.Contains(cells.CPUModels, l.cpu):
		return usagef("--cpu %q must be one of %s", l.cpu, strings.Join(cells.CPUModels, ", "))
	}
	return nil
}

// cards reads --net.
func (l *linuxFlags) cards() ([]*api.Net, error) {
	var out []*api.Net
	for _, text := range l.nets {
		n := &api.Net{}
		for _, item := range strings.Split(text, ",") {
			key, value, _ := strings.Cut(item, "=")
			switch {
			case value == "":
				return nil, usagef("--net %s: say switch=NAME or tap=IFNAME, and mac=ADDRESS if it matters", text)
			case key == "switch" && n.Link == nil:
				n.Link = &api.Net_Switch{Switch: value}
			case key == "tap" && n.Link == nil:
				n.Link = &api.Net_Tap{Tap: value}
			case key == "mac":
				n.Mac = value
			default:
				return nil, usagef("--net %s: say switch=NAME or tap=IFNAME, and mac=ADDRESS if it matters", text)
			}
		}
		if n.Link == nil {
			return nil, usagef("--net %s: say switch=NAME or tap=IFNAME", text)
		}
		out = append(out, n)
	}
	return out, nil
}

// open opens the kernel and the initial RAM disk, in the order in which they are sent.
func (l *linuxFlags) open(spec *api.VMSpec) (files []*os.File, err error) {
	spec.Payload = &api.VMSpec_Linux{Linux: &api.LinuxGuest{Cmdline: l.cmdline, Cpu: l.cpu}}
	if spec.Nets, err = l.cards(); err != nil {
		return nil, err
	}
	for _, path := range []string{l.kernel, l.initrd} {
		if path == "" {
			continue
		}
		f, err := openRegular(path)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}
