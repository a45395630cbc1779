package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/link"
	"github.com/cellvisor/cellvisor/wire"
)

// The replica plane joins a VM's members and standbys, apart from the page plane, so that the bulk of a checkpoint never delays a page fault.
// Its messages are requests whose first byte is a replicaOp:
//
//	home   -> member   hold, base, cut, release, freeze, stall
//	member -> standby  chunk
//	home   -> standby  commit, align, sums, blocks, block
//	standby -> home    block
//
// Each may be repeated. An answer of DeviceNotReady means: not yet, ask again.
type replicaOp uint8

const (
	replicaHold    replicaOp = iota + 1 // number of the checkpoint, and of the last one committed; the boot that it is of
	replicaBase                         // number of the protection, standbys that want a full copy, the boot that it is of; OK once it is sent
	replicaCut                          // number of the checkpoint, members, flags
	replicaRelease                      // number of the checkpoint
	replicaChunk                        // a chunk
	replicaCommit                       // number of the checkpoint
	replicaFreeze                       // as hold, for a switchover: time does not end it
	replicaStall                        // the guest is to stand still for a second: too much output is held back
	replicaAlign                        // VM epoch, the checkpoint that the VM went on from in it, whether its shares can be had, the boot
	replicaSums                         // disk, its size, first block: answered with checksums
	replicaBlocks                       // a chunk of recordDisk
	replicaBlock                        // a block's key: answered with its contents
)

const cutHistory = 1 // flag of replicaCut: with the output that has left which a standby may lack

const (
	replicaDeadline = time.Second
	replicaBackoff  = time.Millisecond
)

// replicas is a part's end of the replica plane and of the VM's protection.
type replicas struct {
	w     *Worker
	plane *link.Pages
	cuts  cutThread
	seq   atomic.Uint64 // of protect

	tracking sync.Mutex // held while what is written begins or ends to be noted; taken before the locks of vCPUs, memory and devices, and before mu

	mu      sync.Mutex             // taken last: nothing else is waited for with it
	protect wire.WorkerProtect     // protected by mu; the latest
	change  chan struct{}          // protected by mu; closed when protect changes
	ended   chan struct{}          // protected by mu; closed when home's latest loop has ended
	base    uint64                 // protected by mu; number of the protection whose full copy was begun by this part
	baseOf  ident.Epoch            // protected by mu; the boot that it is of
	based   bool                   // protected by mu; and is sent
	synced  uint64                 // protected by mu; pages, and blocks of disks, that it has come past
	syncing uint64                 // protected by mu; of so many
	swtch   uint64                 // protected by mu; the number of the protection under which a switchover is asked for
	poke    chan struct{}          // has a token when a switchover was asked for
	lineage lineage                // protected by mu; at home
	silent  map[ident.Part]silence // protected by mu; parts that have not answered of late
	deaf    ident.PartSet          // protected by mu; parts of whose connection nothing comes
	safe    ident.PartSet          // protected by mu; at home: standbys that hold a checkpoint, and all output up to it
	mirrors mirrored               // protected by mu
	logged  logEnds                // protected by mu; at home: how far the logs are in the full copy
	logsOf  uint64                 // protected by mu; of that protection, 0: of none
}

func newReplicas(w *Worker, secret []byte) (*replicas, error) {
	r := &replicas{w: w, cuts: make(cutThread), change: make(chan struct{}), ended: make(chan struct{}), poke: make(chan struct{}, 1), mirrors: newMirrored()}
	close(r.ended)
	go r.cuts.run(w.ctx)
	var err error
	r.plane, err = link.ListenPages(link.PagesConfig{
		ClusterID: w.spec.ClusterID, VM: w.spec.VM, Self: w.spec.Part, Server: w.spec.Server, Secret: secret, Seal: w.spec.Seal,
		ListenHost: w.spec.ListenHost, Handler: replicaHandler{r}, Dial: w.usher.dialer(),
		Logf: func(format string, args ...any) { w.log.Debug().Msgf("replica plane: "+format, args...) },
	})
	return r, err
}

// set takes the VM's protection as it is to be from now on.
func (r *replicas) set(p wire.WorkerProtect) {
	r.tracking.Lock()
	defer r.tracking.Unlock()
	if !r.adopt(p) {
		return
	}
	r.w.thaw()
	if s := r.w.standby.Load(); s != nil { // before any message of this protection
		s.setSeveral(p.Standbys.Has(r.w.spec.Part) && p.Standbys.Len() > 1)
	}
	members := make([]wire.WorkerMember, len(p.Members))
	for i, m := range p.Members {
		members[i] = m
		members[i].Addr = m.ReplicaAddr
	}
	if err := r.plane.SetMembers(ident.Epoch(p.Seq), members); err != nil {
		r.w.log.Error().Err(err).Msg("protection")
		return
	}
	if r.w.standby.Load() != nil {
		return
	}
	if p.Standbys == 0 && r.w.cutter.dirty.on.Load() { // a lock that is wanted for that may be held until mirrors have answered
		if err := r.w.track(false); err != nil {
			r.w.fail(err)
		}
	}
	if r.w.atHome() && p.Home == r.w.spec.Part { // else the VM has gone on elsewhere, and nothing may leave here
		r.mu.Lock()
		defer r.mu.Unlock()
		before, done := r.ended, make(chan struct{})
		r.ended = done
		go r.run(p, r.change, before, done)
	}
}

// adopt makes p the protection that holds, unless it is an old one.
func (r *replicas) adopt(p wire.WorkerProtect) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Seq <= r.protect.Seq {
		return false
	}
	r.protect = p
	r.seq.Store(p.Seq)
	r.mirrors.inStep &= p.Mirrors
	close(r.change)
	r.change = make(chan struct{})
	clear(r.silent)
	return true
}

// current returns the protection and what is closed when it changes.
func (r *replicas) current() (wire.WorkerProtect, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.protect, r.change
}

// ask sends one request to a part and returns whether it was answered with OK.
func (r *replicas) ask(to ident.Part, seq uint64, op replicaOp, body ...uint64) error {
	b := []byte{byte(op)}
	for _, v := range body {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	if to == r.w.spec.Part {
		if !r.serve(op, seq, b[1:]) {
			return errNotReady
		}
		return nil
	}
	err := r.request(to, seq, b)
	r.noteSilence(to, err)
	return err
}

var errNotReady = errors.New("not ready")

func (r *replicas) request(to ident.Part, seq uint64, body []byte) error {
	_, err := r.query(to, seq, body)
	return err
}

// query is request for one that is answered with more than OK.
func (r *replicas) query(to ident.Part, seq uint64, body []byte) ([]byte, error) {
	answer, status, err := r.plane.Request(to, ident.Epoch(seq), wire.DeviceGeneric, body, time.Now().Add(replicaDeadline))
	switch {
	case err != nil:
		return nil, err
	case status == wire.DeviceOK:
		return answer, nil
	case status == wire.DeviceNotReady:
		return nil, errNotReady
	}
	return nil, fmt.Errorf("%s refused replica operation %d", to, body[0])
}

// serve does an operation that a member or standby is asked for under protection seq, other than chunks, and tells whether it is done.
func (r *replicas) serve(op replicaOp, seq uint64, body []byte) bool {
	var v [4]uint64
	for i := range v {
		if len(body) >= 8*(i+1) {
			v[i] = binary.LittleEndian.Uint64(body[8*i:])
		}
	}
	w := r.w
	switch op {
	case replicaHold:
		return w.holdUnder(seq, v[0], v[1], ident.Epoch(v[2]))
	case replicaFreeze:
		return w.freeze(seq, v[0], v[1], ident.Epoch(v[2]))
	case replicaStall:
		w.stallForNow()
		return true
	case replicaCut:
		return r.cutAndShip(v[0], ident.PartSet(v[1]), v[2]&cutHistory != 0)
	case replicaRelease:
		return v[0] != 0 && w.release(v[0])
	case replicaBase:
		return r.sendBase(v[0], ident.PartSet(v[1]), ident.Epoch(v[2]))
	case replicaCommit, replicaAlign:
		s := w.standby.Load()
		if s == nil {
			return false
		}
		var done bool
		var err error
		if op == replicaCommit {
			s.awaitShares(w.ctx, v[0])
			done, err = s.commit(v[0])
		} else {
			done, err = s.align(ident.Epoch(v[0]), v[1], v[2] != 0, ident.Epoch(v[3]))
		}
		if err != nil && !errors.Is(err, errEnded) {
			w.fail(err)
		}
		return done
	}
	return false
}

// cutAndShip captures this part's share and sends it to the standbys while the guest runs on.
func (r *replicas) cutAndShip(number uint64, members ident.PartSet, history bool) bool {
	p, change := r.current()
	s, pack, err := r.w.cut(number, p.Seq, members, history)
	if errors.Is(err, errNotHeld) {
		return false
	}
	if err != nil {
		r.w.fail(err)
		return false
	}
	go func() {
		pack()
		p.Standbys.Each(func(to ident.Part) { go r.ship(s, to, p.Seq, change) })
		if s.disks != nil {
			p.Mirrors.Each(func(to ident.Part) { go r.ship(s.disks, to, p.Seq, change) })
		}
	}()
	return true
}

// shipAtOnce is how many chunks are on their way to a standby at the same time.
const shipAtOnce = 4

// ship sends a share to a standby, until all of it is there or the protection has changed. Chunks may arrive in any order.
func (r *replicas) ship(s *share, to ident.Part, seq uint64, change <-chan struct{}) {
	var next atomic.Int64
	for range min(shipAtOnce, len(s.encoded)) {
		go func() {
			for i := next.Add(1) - 1; i < int64(len(s.encoded)); i = next.Add(1) - 1 {
				for r.request(to, seq, s.encoded[i]) != nil {
					select {
					case <-change:
						return
					case <-r.w.ctx.Done():
						return
					case <-time.After(replicaBackoff):
					}
				}
			}
		}()
	}
}

// replicaHandler is what the replica plane calls.
type replicaHandler struct{ r *replicas }

func (h replicaHandler) HandlePages(ident.Part, ident.Epoch, *wire.PageItems) error {
	return fmt.Errorf("%w: a page message on the replica plane", wire.ErrBadFrame)
}

func (h replicaHandler) HandleDevice(_ ident.Part, seq ident.Epoch, req link.DeviceRequest) {
	w := h.r.w
	switch {
	case len(req.Payload) == 0 || req.Kind != wire.DeviceGeneric:
		req.Reply(wire.DeviceBad, nil)
	case !w.guard.mayAct():
		req.Reply(wire.DeviceNotReady, nil)
	case replicaOp(req.Payload[0]) == replicaSums, replicaOp(req.Payload[0]) == replicaBlocks, replicaOp(req.Payload[0]) == replicaBlock: // these wait for the disk
		go h.diskRequest(replicaOp(req.Payload[0]), append([]byte(nil), req.Payload[1:]...), req)
	case replicaOp(req.Payload[0]) == replicaChunk:
		s := w.standby.Load()
		if s == nil {
			req.Reply(wire.DeviceNotReady, nil)
			return
		}
		if err := s.take(req.Payload[1:]); err != nil {
			w.log.Warn().Err(err).Msg("chunk of a checkpoint")
			req.Reply(wire.DeviceNotReady, nil)
			return
		}
		req.Reply(wire.DeviceOK, nil)
	default: // these wait: for vCPUs, for memory
		op, body := replicaOp(req.Payload[0]), append([]byte(nil), req.Payload[1:]...)
		serve := func() {
			if h.r.serve(op, uint64(seq), body) {
				req.Reply(wire.DeviceOK, nil)
			} else {
				req.Reply(wire.DeviceNotReady, nil)
			}
		}
		if op == replicaHold || op == replicaCut || op == replicaRelease {
			go h.r.cuts.do(w.ctx, serve)
		} else {
			go serve()
		}
	}
}

func (h replicaHandler) PeerUp(part ident.Part) { h.r.noteLink(part, true) }
func (h replicaHandler) PeerDown(part ident.Part, reset bool) {
	h.r.noteLink(part, false)
	h.r.w.hint(part, reset)
}
