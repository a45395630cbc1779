package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ChunkBytes is the largest piece of a payload in one message.
const ChunkBytes = 1 << 20

// Run creates a VM. files are what the spec announces: the payload file, or a Linux kernel and, if there is one, its initial RAM disk; none for a
// built-in payload. The call is not repeated elsewhere: a second try could find the name in use by the first.
func (c *Client) Run(ctx context.Context, spec *VMSpec, files ...io.ReadSeeker) (*VM, error) {
	files = slices.DeleteFunc(files, func(f io.ReadSeeker) bool { return f == nil }) // a nil file is none
	if err := announceAll(spec, files); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.API().RunVM(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&RunVMRequest{Part: &RunVMRequest_Spec{Spec: spec}})
	for _, f := range files {
		if err != nil {
			break
		}
		err = sendFile(stream, f)
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: the server has refused; CloseAndRecv tells why
		return nil, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return nil, err
	}
	return resp.GetVm(), nil
}

func sendFile(stream Cellvisor_RunVMClient, f io.Reader) error {
	buf := make([]byte, ChunkBytes)
	for {
		n, rerr := f.Read(buf)
		if n > 0 {
			if err := stream.Send(&RunVMRequest{Part: &RunVMRequest_Chunk{Chunk: buf[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// announceAll fills in what the spec says about files.
func announceAll(spec *VMSpec, files []io.ReadSeeker) error {
	var all []*PayloadFile
	for _, f := range files {
		file, err := announce(f)
		if err != nil {
			return err
		}
		all = append(all, file)
	}
	linux := spec.GetLinux()
	switch {
	case len(all) == 0:
	case linux == nil && len(all) == 1:
		spec.Payload = &VMSpec_File{File: all[0]}
	case linux != nil && len(all) <= 2:
		linux.Kernel = all[0]
		if len(all) == 2 {
			linux.Initrd = all[1]
		}
	default:
		return fmt.Errorf("%d files for VM %s, which takes fewer", len(all), spec.GetName())
	}
	return nil
}

// announce measures the payload and rewinds it.
func announce(payload io.ReadSeeker) (*PayloadFile, error) {
	h := sha256.New()
	n, err := io.Copy(h, payload)
	if err != nil {
		return nil, err
	}
	if _, err := payload.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &PayloadFile{SizeBytes: uint64(n), Sha256: h.Sum(nil)}, nil
}

// Incoming is a file that is to be received and where to.
type Incoming struct {
	File *PayloadFile
	To   io.Writer
}

// RecvPayload is the server's side of Run: it writes the announced files as they come in, and fails unless sizes and checksums are the
// announced ones. limitBytes bounds what is accepted of each.
func RecvPayload(stream Cellvisor_RunVMServer, limitBytes uint64, files ...Incoming) error {
	for _, f := range files {
		if len(f.File.GetSha256()) != sha256.Size {
			return status.Errorf(codes.InvalidArgument, "the payload's checksum has %d bytes, not %d", len(f.File.GetSha256()), sha256.Size)
		}
		if f.File.GetSizeBytes() > limitBytes {
			return status.Errorf(codes.InvalidArgument, "the payload has %d bytes, at most %d are allowed", f.File.GetSizeBytes(), limitBytes)
		}
	}
	for _, f := range files {
		if err := recvFile(stream, f); err != nil {
			return err
		}
	}
	switch _, err := stream.Recv(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return status.Error(codes.InvalidArgument, "the payload is longer than was announced")
}

// recvFile takes one file. A message belongs to one file.
func recvFile(stream Cellvisor_RunVMServer, f Incoming) error {
	h := sha256.New()
	var got uint64
	for got < f.File.GetSizeBytes() {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		chunk := m.GetChunk()
		got += uint64(len(chunk))
		if len(chunk) > ChunkBytes || got > f.File.GetSizeBytes() {
			return status.Error(codes.InvalidArgument, "the payload is longer than was announced")
		}
		h.Write(chunk)
		if _, err := f.To.Write(chunk); err != nil {
			return fmt.Errorf("storing the payload: %w", err)
		}
	}
	if got != f.File.GetSizeBytes() || string(h.Sum(nil)) != string(f.File.GetSha256()) {
		return status.Errorf(codes.InvalidArgument, "the payload came incomplete or damaged: %d of %d bytes", got, f.File.GetSizeBytes())
	}
	return nil
}
