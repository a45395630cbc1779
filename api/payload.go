package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ChunkBytes is the largest piece of a payload in one message.
const ChunkBytes = 1 << 20

// Run creates a VM. payload is the file that spec.File announces, and nil for a built-in one. The call is not repeated elsewhere: a
// second try could find the name in use by the first.
func (c *Client) Run(ctx context.Context, spec *VMSpec, payload io.ReadSeeker) (*VM, error) {
	if payload != nil {
		file, err := announce(payload)
		if err != nil {
			return nil, err
		}
		spec.Payload = &VMSpec_File{File: file}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.API().RunVM(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&RunVMRequest{Part: &RunVMRequest_Spec{Spec: spec}})
	if payload != nil {
		buf := make([]byte, ChunkBytes)
		for err == nil {
			n, rerr := payload.Read(buf)
			if n > 0 {
				err = stream.Send(&RunVMRequest{Part: &RunVMRequest_Chunk{Chunk: buf[:n]}})
			}
			if errors.Is(rerr, io.EOF) {
				break
			}
			if rerr != nil {
				return nil, rerr
			}
		}
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

// RecvPayload is the server's side of Run: it writes the announced payload to w as it comes in, and fails unless size and checksum are the
// announced ones. limitBytes bounds what is accepted.
func RecvPayload(stream Cellvisor_RunVMServer, file *PayloadFile, limitBytes uint64, w io.Writer) error {
	if len(file.GetSha256()) != sha256.Size {
		return status.Errorf(codes.InvalidArgument, "the payload's checksum has %d bytes, not %d", len(file.GetSha256()), sha256.Size)
	}
	if file.GetSizeBytes() > limitBytes {
		return status.Errorf(codes.InvalidArgument, "the payload has %d bytes, at most %d are allowed", file.GetSizeBytes(), limitBytes)
	}
	h := sha256.New()
	var got uint64
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		chunk := m.GetChunk()
		got += uint64(len(chunk))
		if len(chunk) > ChunkBytes || got > file.GetSizeBytes() {
			return status.Error(codes.InvalidArgument, "the payload is longer than was announced")
		}
		h.Write(chunk)
		if _, err := w.Write(chunk); err != nil {
			return fmt.Errorf("storing the payload: %w", err)
		}
	}
	if got != file.GetSizeBytes() || string(h.Sum(nil)) != string(file.GetSha256()) {
		return status.Errorf(codes.InvalidArgument, "the payload came incomplete or damaged: %d of %d bytes", got, file.GetSizeBytes())
	}
	return nil
}
