package worker

import (
	"encoding/binary"
	"fmt"

	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/vmm/kvm"
	"github.com/cellvisor/cellvisor/wire"
)

// clockRounds is how often home is asked for its counter. The quickest answer counts.
const clockRounds = 32

// measureClock gives a vCPU the counter of a home on another host. Home reads its counter somewhere between question and answer, so the error is at
// most half the shortest round trip, and nothing that the vCPU learns from home comes quicker than that way: it sees no time go back
// as long as both directions take about the same.
func (w *Worker) measureClock(v *vcpu, life uint64) error {
	var offset, best uint64
	for i := range clockRounds {
		before := kvm.HostTSC()
		answer, err := w.askHome(life, deviceRequest{vcpu: v.cpu.ID(), op: opCounter}, &v.asking)
		after := kvm.HostTSC()
		if err != nil {
			return err
		}
		if len(answer) != 8 {
			return fmt.Errorf("home answered with %d bytes for its counter, want 8", len(answer))
		}
		if took := after - before; i == 0 || took < best {
			best, offset = took, binary.LittleEndian.Uint64(answer)-(before+took/2)
		}
	}
	w.log.Info().Uint64("offset", offset).Uint64("round_trip", best).Msg("the clock of home, measured")
	return v.cpu.SetTSCOffset(offset)
}

// replyCounter answers measureClock at home.
func (w *Worker) replyCounter(req link.DeviceRequest) {
	if !w.isSpanned() || !w.atHome() {
		req.Reply(wire.DeviceNotHome, nil)
		return
	}
	clock := w.linux.span.clock.Load()
	if clock == nil {
		req.Reply(wire.DeviceNotReady, nil)
		return
	}
	counter := kvm.HostTSC() + clock.offset
	req.Reply(wire.DeviceOK, binary.LittleEndian.AppendUint64(nil, counter))
}
