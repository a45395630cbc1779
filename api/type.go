package api

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A guest that reads slowly is offered more input after typePause; its serial port takes as much as TypeBytes at a time.
const (
	typePause = 20 * time.Millisecond
	// TypeBytes is the largest piece of input in one call.
	TypeBytes = 4096
)

// Type hands all of data to a Linux guest's serial port, waiting while there is no room. A call whose answer was lost on the way is repeated
// only where it cannot have been carried out, so that nothing is typed twice.
func (c *Client) Type(ctx context.Context, name string, data []byte) error {
	for len(data) > 0 {
		addr := c.Addr()
		resp, err := c.API().TypeVM(ctx, &TypeVMRequest{Name: name, Data: data[:min(len(data), TypeBytes)]})
		if status.Code(err) == codes.Aborted { // the VM has moved
			err = c.choose(ctx, addr)
		}
		if err != nil {
			return err
		}
		taken := min(int(resp.GetTaken()), len(data))
		if data = data[taken:]; taken > 0 {
			continue
		}
		select {
		case <-time.After(typePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
