package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/disk"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/linux"
)

// What a guest is started from, as it comes in with RunVM.

// linuxFrom translates what was asked for of a Linux guest.
func linuxFrom(l *api.LinuxGuest, spec *cells.VMSpec) {
	spec.PayloadSHA256, spec.PayloadBytes = hex.EncodeToString(l.GetKernel().GetSha256()), ident.Bytes(l.GetKernel().GetSizeBytes())
	spec.Linux = &cells.LinuxSpec{Cmdline: l.GetCmdline(), CPU: l.GetCpu()}
	if spec.Linux.CPU == "" {
		spec.Linux.CPU = string(linux.ModelHost)
	}
	if f := l.GetInitrd(); f != nil {
		spec.Linux.InitrdSHA256, spec.Linux.InitrdBytes = hex.EncodeToString(f.GetSha256()), ident.Bytes(f.GetSizeBytes())
	}
}

// netsFrom translates network cards. What the registry checks itself is left to it.
func netsFrom(nets []*api.Net, spec *cells.VMSpec) error {
	if len(nets) > 0 && spec.Linux == nil {
		return status.Error(codes.InvalidArgument, "network cards are for Linux guests: a payload has none")
	}
	for _, n := range nets {
		spec.Linux.Nets = append(spec.Linux.Nets, cells.NetSpec{Switch: n.GetSwitch(), TAP: n.GetTap(), MAC: strings.ToLower(n.GetMac())})
	}
	return nil
}

func netMessages(vm *cells.VM) []*api.Net {
	if vm.Spec.Linux == nil {
		return nil
	}
	var out []*api.Net
	for i, n := range vm.Spec.Linux.Nets {
		m := &api.Net{Link: &api.Net_Switch{Switch: n.Switch}, Mac: vm.MAC(i)}
		if n.TAP != "" {
			m.Link = &api.Net_Tap{Tap: n.TAP}
		}
		out = append(out, m)
	}
	return out
}

// linuxMessage is linuxFrom the other way round.
func linuxMessage(spec *cells.VMSpec) *api.LinuxGuest {
	l := spec.Linux
	if l == nil {
		return nil
	}
	file := func(sha string, size ident.Bytes) *api.PayloadFile {
		if sha == "" {
			return nil
		}
		sum, _ := hex.DecodeString(sha) // it was checked when the VM was registered
		return &api.PayloadFile{SizeBytes: uint64(size), Sha256: sum}
	}
	return &api.LinuxGuest{
		Kernel: file(spec.PayloadSHA256, spec.PayloadBytes), Initrd: file(l.InitrdSHA256, l.InitrdBytes), Cmdline: l.Cmdline, Cpu: l.CPU,
	}
}

// takeGuest stores the files that follow the spec on the stream, and checks that the guest can be loaded. The caller calls unpin once a VM
// names the files.
func (v *service) takeGuest(stream api.Cellvisor_RunVMServer, asked *api.VMSpec, spec *cells.VMSpec) (unpin func(), err error) {
	var files []*api.PayloadFile
	switch l := asked.GetLinux(); {
	case asked.GetFile() != nil:
		files = append(files, asked.GetFile())
	case l != nil:
		if l.GetKernel() == nil {
			return nil, status.Error(codes.InvalidArgument, "a Linux guest needs a kernel")
		}
		if files = append(files, l.GetKernel()); l.GetInitrd() != nil {
			files = append(files, l.GetInitrd())
		}
	default:
		if err := drain(stream); err != nil {
			return nil, err
		}
		return func() {}, checkBuiltin(spec)
	}
	return v.takeFiles(stream, files, spec)
}

// drain refuses a payload file after a spec that names a built-in one.
func drain(stream api.Cellvisor_RunVMServer) error {
	switch _, err := stream.Recv(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return status.Error(codes.InvalidArgument, "a payload file was sent, but the spec names a built-in payload")
}

func checkBuiltin(spec *cells.VMSpec) error {
	image, err := payload.Open(spec.Builtin)
	if err == nil {
		_, err = boot.Load(image, boot.Config{Memory: spec.MemoryBytes, VCPUs: spec.VCPUs, Args: spec.Args})
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func (v *service) takeFiles(stream api.Cellvisor_RunVMServer, files []*api.PayloadFile, spec *cells.VMSpec) (unpin func(), err error) {
	writers := make([]*disk.BlobWriter, len(files))
	incoming := make([]api.Incoming, len(files))
	for i, f := range files {
		w, err := v.s.store.Blobs().Create(ident.Bytes(min(f.GetSizeBytes(), maxPayload)))
		if err != nil {
			return nil, status.Errorf(codes.Internal, "server %s: %v", v.s.cfg.Name, err)
		}
		defer w.Abort()
		writers[i], incoming[i] = w, api.Incoming{File: f, To: w}
	}
	if err := api.RecvPayload(stream, maxPayload, incoming...); err != nil {
		if _, known := status.FromError(err); !known {
			err = status.Errorf(codes.Internal, "server %s: %v", v.s.cfg.Name, err)
		}
		return nil, err
	}
	if err := checkFiles(writers, spec); err != nil {
		return nil, err
	}
	var pins []func()
	unpin = func() {
		for _, f := range pins {
			f()
		}
	}
	for i, w := range writers {
		sha := hex.EncodeToString(files[i].GetSha256())
		pins = append(pins, v.s.blobPins.pin(sha))
		if _, err := w.Commit(sha); err != nil {
			unpin()
			return nil, status.Errorf(codes.Internal, "server %s: %v", v.s.cfg.Name, err)
		}
	}
	spec.PayloadServer = v.s.store.Identity().Server
	return unpin, nil
}

// checkFiles refuses files that the loader of the home part would refuse later. They are mapped, not read: they may be large.
func checkFiles(files []*disk.BlobWriter, spec *cells.VMSpec) error {
	var images [][]byte
	for _, w := range files {
		image, err := mapFile(w.Name())
		if err != nil {
			return err
		}
		defer unix.Munmap(image)
		images = append(images, image)
	}
	var err error
	if spec.Linux == nil {
		_, err = boot.Load(images[0], boot.Config{Memory: spec.MemoryBytes, VCPUs: spec.VCPUs, Args: spec.Args})
	} else {
		c := linux.Config{Memory: spec.MemoryBytes, VCPUs: spec.VCPUs, Kernel: images[0], Cmdline: spec.Linux.Cmdline}
		if len(images) > 1 {
			c.Initrd = images[1]
		}
		_, err = linux.Load(c)
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "payload: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "payload: %v", err)
	}
	if st.Size() == 0 {
		return nil, status.Error(codes.InvalidArgument, "the payload is empty")
	}
	image, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("payload: %v", err))
	}
	return image, nil
}
