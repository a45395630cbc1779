package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// SetTSC sets the guest's time stamp counter of the vCPU, which must not be in Run, at this instant.
func (v *VCPU) SetTSC(value uint64) error {
	if err := v.setMSRs([]gokvm.MSREntry{{Index: msrTSC, Data: value}}); err != nil {
		return fmt.Errorf("vCPU %d: set its time stamp counter: %w", v.id, err)
	}
	return nil
}
