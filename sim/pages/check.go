package pages

import (
	"fmt"

	"github.com/anishathalye/porcupine"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/mem"
)

// check looks at all parts after each event.
func (w *world) check() error {
	for page := range w.latest {
		readers, writers := 0, 0
		for _, p := range w.parts {
			if p.boot != len(w.lives)-1 { // of a former boot: on its way out
				continue
			}
			switch p.guest[page] {
			case readOnly:
				readers++
			case readWrite:
				writers++
			}
		}
		if writers > 1 || writers == 1 && readers > 0 {
			return fmt.Errorf("page %d is mapped by %d writers and %d readers", page, writers, readers)
		}
	}
	for _, p := range w.parts {
		for _, page := range p.lost {
			if err := w.mayBeLost(page); err != nil {
				return fmt.Errorf("p%d: %w", p.self, err)
			}
		}
		p.lost = p.lost[:0]
		if err := p.disk.check(); err != nil {
			return err
		}
	}
	return nil
}

// mayBeLost checks that a page was not given up for lost without need.
func (w *world) mayBeLost(page ident.PageNo) error {
	if w.touched[page]&w.dead == 0 {
		return fmt.Errorf("page %d is lost, though no dead part ever had to do with it", page)
	}
	for _, p := range w.parts {
		if s := p.core.Page(page); !w.dead.Has(p.self) && s != mem.Invalid {
			return fmt.Errorf("page %d is lost, though %v holds it %v", page, p.self, s)
		}
	}
	return nil
}

// quiet tells whether no core has anything under way.
func (w *world) quiet() bool {
	for _, p := range w.parts {
		if w.dead.Has(p.self) {
			continue
		}
		if p.core.Epoch() != w.epoch || p.core.Outstanding() != 0 || p.core.Rebuilding() || p.core.Transactions() != 0 || p.core.Giving() != 0 {
			return false
		}
	}
	return true
}

// settled checks that after healing everything came to its end, and that the directories know what the parts hold.
func (w *world) settled() error {
	for _, p := range w.parts {
		if w.dead.Has(p.self) {
			continue
		}
		for _, v := range p.vcpus {
			if len(v.ops) > 0 {
				return fmt.Errorf("%v vCPU %d never ended its operation on page %d (write %t, waiting %t); core: %d outstanding, rebuilding %t",
					p.self, v.index, v.ops[0].page, v.ops[0].write, v.waiting, p.core.Outstanding(), p.core.Rebuilding())
			}
		}
		if p.pin != nil || len(p.devOps) > 0 {
			return fmt.Errorf("%v device never ended its operations: %+v, %d more", p.self, p.pin, len(p.devOps))
		}
	}
	if err := w.diskEnded(); err != nil {
		return err
	}
	if w.open != 0 || !w.quiet() {
		return fmt.Errorf("%d operations open, parts quiet: %t", w.open, w.quiet())
	}
	for page := range w.latest {
		if err := w.directoryKnows(ident.PageNo(page)); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) directoryKnows(page ident.PageNo) error {
	var holders ident.PartSet
	state := mem.Invalid
	w.members.Each(func(p ident.Part) {
		if s := w.parts[p].core.Page(page); s != mem.Invalid {
			holders, state = holders.Set(p), s
		}
	})
	var info mem.HolderInfo
	directories := 0
	w.members.Each(func(p ident.Part) {
		if i, ok := w.parts[p].core.Holder(page); ok {
			info = i
			directories++
		}
	})
	switch {
	case directories != 1 || info.Busy:
		return fmt.Errorf("%d directories of page %d: %+v", directories, page, info)
	case info.State == mem.Zero || info.State == mem.Lost || info.State == mem.Retained:
		if holders != 0 {
			return fmt.Errorf("directory says that page %d is %v, parts %b hold it", page, info.State, holders)
		}
	case info.State != state || info.Holders != holders:
		return fmt.Errorf("directory says that page %d is %v at %b, it is %v at %b", page, info.State, info.Holders, state, holders)
	}
	return nil
}

// register is porcupine's model of one page.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		type key struct {
			page ident.PageNo
			boot int
		}
		pages := make(map[key]int)
		var parts [][]porcupine.Operation
		for _, op := range history {
			in := op.Input.(operation)
			page := key{in.page, in.boot}
			i, ok := pages[page]
			if !ok {
				i = len(parts)
				pages[page] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Step: func(state, input, _ any) (bool, any) {
		op := input.(operation)
		if op.write {
			return true, op.value
		}
		return op.value == state.(uint64), state
	},
}

func (w *world) linearizable() error {
	ops := make([]porcupine.Operation, len(w.history))
	for i, op := range w.history {
		ops[i] = porcupine.Operation{ClientId: op.client, Input: op, Call: int64(op.begun), Return: int64(op.ended)}
	}
	model := register
	model.Init = func() any { return w.image }
	if !porcupine.CheckOperations(model, ops) {
		return fmt.Errorf("the history of %d operations is not linearizable", len(ops))
	}
	return nil
}
