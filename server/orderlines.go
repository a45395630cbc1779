package server

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cellvisor/cellvisor/gang"
	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// orderLines are sockets that are connected with those on which workers take orders: to look up a path for each order would cost more than the order.
type orderLines struct {
	worker func(ident.VMID) (dir string, turns bool) // the worker's directory, "" if there is none, and whether it takes turns
	open   map[ident.VMID]orderLine
	buf    [wire.SliceDatagramLimit]byte
}

type orderLine struct {
	fd    int
	dir   string
	turns bool
}

// line returns the VM's. ok is false if there is no worker.
func (l *orderLines) line(vm ident.VMID, path func(string) string) (line orderLine, ok bool, err error) {
	dir, turns := l.worker(vm)
	line, ok = l.open[vm]
	if ok && line.dir == dir && line.turns == turns {
		return line, true, nil
	}
	l.drop(vm)
	if dir == "" {
		return orderLine{}, false, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return orderLine{}, true, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path(filepath.Join(dir, wire.WorkerRunSocket))}); err != nil {
		unix.Close(fd)
		return orderLine{}, true, err
	}
	if l.open == nil {
		l.open = map[ident.VMID]orderLine{}
	}
	line = orderLine{fd, dir, turns}
	l.open[vm] = line
	return line, true, nil
}

// drop closes a line. The next order opens another one.
func (l *orderLines) drop(vm ident.VMID) {
	if line, ok := l.open[vm]; ok {
		unix.Close(line.fd)
		delete(l.open, vm)
	}
}

// follow drops the lines of VMs that are no longer here.
func (l *orderLines) follow(here func(ident.VMID) bool) {
	for vm := range l.open {
		if !here(vm) {
			l.drop(vm)
		}
	}
}

// give sends a worker its order. One that is lost is repeated; the worker is free by itself if none comes.
func (g *gangs) give(o gang.Order) {
	line, ok, err := g.lines.line(o.VM, g.path)
	if !ok {
		return
	}
	order := o.SliceOrder
	order.CPUs = g.slotsOf(o.CPUs)
	if order.Next = nil; line.turns {
		for _, t := range o.Next {
			t.CPUs = g.slotsOf(t.CPUs)
			order.Next = append(order.Next, t)
		}
	}
	if err == nil {
		err = g.lines.send(line, &order)
	}
	for i := 0; err == nil && !line.turns && i < len(o.Next); i++ { // one that knows only of single orders
		t := &o.Next[i]
		err = g.lines.send(line, &wire.SliceOrder{Number: t.Number, Mode: t.Mode, At: t.At, Until: order.Until, CPUs: g.slotsOf(t.CPUs)})
	}
	if err != nil {
		g.lines.drop(o.VM)
		g.failed++
		g.core.Step(bootMicros(), gang.Undelivered{VM: o.VM})
		g.log.Debug().Err(err).Uint64("vm", uint64(o.VM)).Msg("an order about slices was not delivered")
	}
}

func (l *orderLines) send(line orderLine, o *wire.SliceOrder) error {
	_, err := unix.Write(line.fd, wire.AppendSliceOrder(l.buf[:0], o))
	return err
}

// slotsOf gives the CPUs of slots.
func (g *gangs) slotsOf(slots []uint16) (cpus []uint16) {
	for _, slot := range slots {
		if int(slot) < len(g.cpus) {
			cpus = append(cpus, g.cpus[slot])
		}
	}
	return cpus
}

// turnMicros sums up what the vCPUs here have used to go from turn to turn.
func (s *supervisor) turnMicros() (sum uint64) {
	for _, w := range s.all() {
		w.mu.Lock()
		if w.stats != nil {
			sum += uint64(w.stats.TurnMicros)
		}
		w.mu.Unlock()
	}
	return sum
}
