// Package cpuidle keeps the CPUs of this host from going to sleep while somebody waits for a message.
//
// An idle CPU saves power: it halts, and in deep states even flushes its caches. To wake it costs from a few microseconds to some hundred,
// more than all the rest of a remote page fault; a host that is itself a virtual machine pays two exits to its own hypervisor. The
// kernel's remedy is a quality-of-service request: whoever holds /dev/cpu_dma_latency open says how late CPUs may wake, and at 0 µs idle CPUs
// poll. That burns power, so it is asked for only while it gains something, and the request ends with the process whatever happens.
// See Documentation/power/pm_qos_interface.rst in Linux.
package cpuidle

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Device is what requests go through. It is usually root's.
const Device = "/dev/cpu_dma_latency"

// noRequest is PM_QOS_DEFAULT_VALUE: the file stays open and asks for nothing.
const noRequest = -1

// Latency is this process's request. Its methods may be called from one thread at a time; those of a nil Latency do nothing.
type Latency struct {
	fd   int
	held bool
}

// Open prepares a request, which asks for nothing yet. The error says that this host or this user has no way to ask.
func Open() (*Latency, error) {
	fd, err := unix.Open(Device, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", Device, err)
	}
	return &Latency{fd: fd}, nil
}

// Hold asks that idle CPUs wake at once.
func (l *Latency) Hold() {
	if l != nil && !l.held {
		l.held = l.ask(0)
	}
}

// Release takes that back.
func (l *Latency) Release() {
	if l != nil && l.held {
		l.held = !l.ask(noRequest)
	}
}

// Held tells whether CPUs are asked to stay awake.
func (l *Latency) Held() bool { return l != nil && l.held }

// ask writes microseconds. A refused request changes nothing but speed.
func (l *Latency) ask(micros int32) bool {
	var word [4]byte
	binary.NativeEndian.PutUint32(word[:], uint32(micros))
	_, err := unix.Write(l.fd, word[:])
	return err == nil
}

// Close ends the request.
func (l *Latency) Close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}
