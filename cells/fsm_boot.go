package cells

import (
	"fmt"

	"github.com/cellvisor/cellvisor/ident"
)

// Restarts in place.
//
//	running --crash, or an operator's reset--> running, in a new VM epoch that it booted in
//	running --crash at the limit-------------> failed
//
// A restart is a new epoch of the VM with the same members: each gives up what it has of the guest, memory becomes Zero, home loads the image
// again. What has left the VM stays; what its standbys hold is the past that it goes back to if it is lost before a checkpoint of the new boot is
// safe, and nothing of the new boot has left by then.

// CrashWindow is how soon after its boot a crash counts as one in a row: a guest that ran longer did something.
const CrashWindow = 10 * ident.Second

// DefaultCrashLimit is how many crashes in a row end a VM unless told otherwise.
const DefaultCrashLimit = 3

// MaxCrashLimit bounds VMSpec.CrashLimit.
const MaxCrashLimit = 1_000_000

// BootEpoch is the VM epoch in which the guest booted last.
func (v *VM) BootEpoch() ident.Epoch {
	if v.Booted != 0 {
		return v.Booted
	}
	return v.Created
}

// crashed decides whether a guest that failed by itself boots again.
func (f *FSM) crashed(vm *VM, p *VMPart, c *EndVM) *Fault {
	if c.Booted != vm.BootEpoch() || vm.State != VMRunning {
		return faultf(CodeConflict, "vm %s: the crash was of the boot in epoch %d, it booted again in epoch %d", vm.Spec.Name, c.Booted, vm.BootEpoch())
	}
	vm.Registers = clip(c.Registers, 8192)
	reason := clip(c.Reason, 400)
	if c.UpMicros >= CrashWindow {
		vm.Crashes = 0
	}
	vm.Crashes++
	limit := vm.Spec.CrashLimit
	switch {
	case !vm.Spec.RebootOnCrash:
		f.finish(vm, VMFailed, reason, 0)
	case limit > 0 && vm.Crashes >= limit:
		if limit > 1 {
			reason += fmt.Sprintf("; it crashed %d times in a row within %d s of its boot, the limit (--crash-limit)", vm.Crashes, CrashWindow/ident.Second)
		}
		f.finish(vm, VMFailed, reason, 0)
	default:
		f.reboot(vm, fmt.Sprintf("the guest crashed on %s: %s", p.ServerName, reason))
	}
	return nil
}

func (f *FSM) resetVM(c *ResetVM) *Fault {
	vm, fault := f.find(c.VM, c.Name)
	switch {
	case fault != nil:
		return fault
	case !vm.State.Active():
		return faultf(CodeConflict, "vm %s does not run: it is %s", vm.Spec.Name, vm.State)
	case vm.State != VMRunning:
		return faultf(CodeConflict, "vm %s is %s: reset it when it runs", vm.Spec.Name, vm.State)
	case vm.Restored && !vm.Resumed:
		return faultf(CodeConflict, "vm %s is being recovered: reset it when it runs again", vm.Spec.Name)
	}
	reason := "reset by an operator"
	if c.Reason != "" {
		reason += ": " + clip(c.Reason, 256)
	}
	vm.Crashes = 0
	f.unsave(vm, "it was reset")
	f.reboot(vm, reason)
	return nil
}

// reboot restarts the guest in place.
func (f *FSM) reboot(vm *VM, reason string) {
	vm.Epoch = max(f.state.View.Epoch, vm.Epoch+1)
	vm.Booted, vm.Restored, vm.Resumed = vm.Epoch, false, false
	vm.Hand = nil
	vm.Restarts++
	if vm.Move != nil && vm.Move.Switching != 0 {
		vm.ProtectSeq++ // what home froze for the switchover is the past: it goes on here
		vm.SafeSeq = 0
	}
	f.emit(Event{Kind: EventVMRestarted, Subject: "vm " + vm.Spec.Name,
		Text:   fmt.Sprintf("vm %s is restarted in place (restart %d): %s", vm.Spec.Name, vm.Restarts, reason),
		Fields: map[string]string{"reason": reason, "restarts": fmt.Sprint(vm.Restarts), "vm_epoch": fmt.Sprint(vm.Epoch)}})
}
