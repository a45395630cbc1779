package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/api/view"
	"github.com/cellvisor/cellvisor/ident"
)

func (a *app) vmSaveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "save NAME FILE",
		Short: "Write a running VM's state to a file, and stop it",
		Long: `Write a running VM's whole state to a file: its memory, processors and devices, what it put out, and the kernel or payload that it is started
from. The VM stands still meanwhile and is stopped when the file is complete. "vm restore" makes a VM that goes on from there, on this or another
cluster with the same processors. Disks are not in the file: they must be as the VM left them.

Whatever goes wrong before, and Ctrl-C, leaves no file behind and lets the VM go on.`,
		Example:           "  cellvisor vm save web web.saved\n  cellvisor vm rm web && cellvisor vm restore web web.saved",
		Args:              args(2, 2, "a VM's name and a file"),
		ValidArgsFunction: a.completeVMs(api.VMState_VM_STATE_RUNNING, api.VMState_VM_STATE_PAUSED),
		RunE:              a.withClient(a.vmSave),
	}
}

func (a *app) vmSave(ctx context.Context, c *api.Client, names []string) error {
	name, path := names[0], names[1]
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already: choose another name, or remove it", path)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	var perr *os.PathError
	if errors.As(err, &perr) { // its path is that of the file's first name, which means nothing to anybody
		return fmt.Errorf("%s cannot be made: %w", path, perr.Err)
	}
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	p := a.progress()
	defer p.done()
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	heed := context.AfterFunc(ctx, cancel) // until the file is kept: from then on what became of the VM has to be known
	stream, err := c.API().SaveVM(call)
	if err != nil {
		return err
	}
	if err := stream.Send(&api.SaveVMRequest{Name: name}); err != nil && !errors.Is(err, io.EOF) { // then Recv says why
		return err
	}
	size, saved, err := receiveState(stream, file, func(n uint64) { p.say("saving VM %s: %s", name, ident.Bytes(n)) })
	if err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil { // unlike a rename, it never takes the place of another file
		return err
	}
	syncDir(filepath.Dir(path))
	if !heed() {
		return errors.Join(context.Cause(ctx), os.Remove(path))
	}
	defer time.AfterFunc(keptPatience, cancel).Stop()
	v, err := endSave(stream)
	if err != nil {
		return a.afterSave(c, saved, path, err)
	}
	p.done()
	if a.format == "json" {
		return a.json(view.OfVM(v))
	}
	fmt.Fprintf(a.out, "%s: %s\n", path, ident.Bytes(size))
	return nil
}

// keptPatience is how long it may take, after the file is complete, to hear that the VM has ended for it.
const keptPatience = 30 * time.Second

// receiveState writes what comes into a file, until it is whole.
func receiveState(stream api.Cellvisor_SaveVMClient, file *os.File, say func(uint64)) (size uint64, saved *api.VM, err error) {
	out := bufio.NewWriterSize(file, 1<<20)
	for {
		m, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server ended the call before the state was whole; the VM goes on")
			}
			return 0, nil, err
		}
		n, err := out.Write(m.GetChunk())
		if err != nil {
			return 0, nil, err
		}
		size += uint64(n)
		say(size)
		if m.GetWhole() {
			if m.GetSizeBytes() != size {
				return 0, nil, fmt.Errorf("%d bytes have arrived, %d were sent; the VM goes on", size, m.GetSizeBytes())
			}
			return size, m.GetVm(), out.Flush()
		}
	}
}

// endSave says that the file is kept, and returns the VM, stopped.
func endSave(stream api.Cellvisor_SaveVMClient) (*api.VM, error) {
	if err := stream.Send(&api.SaveVMRequest{Kept: true}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if v := m.GetVm(); v != nil {
			return v, nil
		}
	}
}

// afterSave looks what became of the VM when nobody said: the file counts unless the VM has gone on. As long as nothing has come after the pause that it
// was saved in, that is not settled.
func (a *app) afterSave(c *api.Client, saved *api.VM, path string, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), keptPatience)
	defer cancel()
	for {
		v, err := getVM(ctx, c, saved.GetName())
		switch same := err == nil && v.GetId() == saved.GetId(); {
		case same && v.GetState() == api.VMState_VM_STATE_STOPPED:
			return nil
		case same && v.GetState().Ended() && v.GetPauseSeq() == saved.GetPauseSeq(): // it was lost in that pause: the file has all that it did
			return nil
		case same && v.GetPauseSeq() > saved.GetPauseSeq():
			return errors.Join(cause, os.Remove(path))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; whether VM %s was stopped for it is not known: if it runs, remove %s", cause, saved.GetName(), path)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}

func (a *app) vmRestoreCmd() *cobra.Command {
	var span []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "restore NAME FILE",
		Short: "Make a VM that goes on from a saved one",
		Long: `Make a VM called NAME that goes on from where "vm save" left it. The file is checked as a whole before anything is made. The file may be restored
on another cluster, with the same processors; a VM with disks only where these are as it left them.`,
		Example:           "  cellvisor vm restore web web.saved\n  cellvisor vm restore web2 web.saved --span b",
		Args:              args(2, 2, "a name for the VM and a file"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.withClient(func(ctx context.Context, c *api.Client, names []string) error {
			return a.vmRestore(ctx, c, names[0], names[1], span, timeout)
		}),
	}
	cmd.ValidArgsFunction = func(_ *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(got) == 1 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cmd.Flags().StringSliceVar(&span, "span", nil, "cells to place it in (default: those that it was in, if they are there)")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait for its start (0: as long as it takes)")
	return cmd
}

func (a *app) vmRestore(ctx context.Context, c *api.Client, name, path string, span []string, timeout time.Duration) error {
	file, err := openRegular(path)
	if err != nil {
		return err
	}
	defer file.Close()
	p := a.progress()
	defer p.done()
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	created, err := sendState(sctx, c, &api.RestoreVMRequest{Name: name, Span: span}, file, func(n uint64) { p.say("restoring VM %s: %s", name, ident.Bytes(n)) })
	if err != nil {
		return whyRefused(ctx, c, err)
	}
	wctx, cancelWait := withTimeout(ctx, timeout)
	defer cancelWait()
	v, err := c.Wait(wctx, name, created.GetId(), api.WaitVMRequest_UNTIL_STARTED, func(v *api.VM) { p.say("VM %s is %s", name, v.GetState().Word()) })
	if err != nil {
		if ctx.Err() != nil {
			return takeBack(c, created)
		}
		return waitError(name, err)
	}
	p.done()
	return a.finish(v, false)
}

// sendState sends a file. An error of the server's is better than that of the broken stream.
func sendState(ctx context.Context, c *api.Client, first *api.RestoreVMRequest, file io.Reader, say func(uint64)) (*api.VM, error) {
	stream, err := c.API().RestoreVM(ctx)
	if err != nil {
		return nil, err
	}
	sent, buf := uint64(0), make([]byte, api.ChunkBytes)
	for m := first; ; m = new(api.RestoreVMRequest) {
		n, err := io.ReadFull(file, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		m.Chunk = buf[:n]
		if stream.Send(m) != nil || err != nil {
			break
		}
		sent += uint64(n)
		say(sent)
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetVm(), err
}
