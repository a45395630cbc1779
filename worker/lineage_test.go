package worker

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// lineageShare is checkpoint n over two pages that change with it and one output record.
func lineageShare(n, since uint64) *share {
	s := testShare(n, 0, 0b1)
	s.header.since = since
	s.add(recordPage, 5, filled(byte(n)))
	s.add(recordPage, 10+n, filled(byte(n)))
	if n%3 == 0 {
		s.add(recordZero, 7, nil)
	} else {
		s.add(recordPage, 7, filled('a'+byte(n)))
	}
	s.add(recordVCPU, 0, []byte{byte(n)})
	s.add(recordDevice, 0, []byte{byte(n)})
	s.addStream(recordOutput, outputPiece{offset: 2 * int64(since), bytes: bytes.Repeat([]byte("0\n"), int(n-since))})
	return s
}

func (s *standby) contents(t *testing.T) string {
	t.Helper()
	all := make([]byte, s.ram.Size())
	if _, err := s.ram.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(s.output.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %v %v %q %x", s.applied, s.vcpus, s.device, out, all)
}

func lineageStandby(t *testing.T, upTo uint64) *standby {
	t.Helper()
	s, _ := testStandby(t)
	s.setSeveral(true)
	s.mustTake(t, base(0, 0b1, 5, 'b'))
	for n := uint64(1); n <= upTo; n++ {
		s.mustTake(t, lineageShare(n, n-1))
		if done, err := s.commit(n); !done || err != nil {
			t.Fatalf("checkpoint %d: %v, %v", n, done, err)
		}
	}
	return s
}

// A standby comes to the checkpoint that the VM went on from, whether it has the one before or the one after, and then takes the next ones.
func TestStandbyFollowsTheOneThatTookOver(t *testing.T) {
	for _, at := range []uint64{6, 7, 8} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			const home = 7
			from, s := lineageStandby(t, home), lineageStandby(t, at)
			want := from.contents(t)
			r, err := from.takeOver()
			if err != nil {
				t.Fatal(err)
			}
			s.mustTake(t, lineageShare(at+1, at)) // of the home that is gone, not asked for
			done, err := s.align(20, home, true, 0)
			if err != nil || done != (at >= home) {
				t.Fatalf("aligned: %v, %v", done, err)
			}
			if !done {
				for _, sh := range r.last.sharesOf(home) {
					for _, c := range sh.encoded {
						if err := s.take(c[1:]); err != nil {
							t.Fatal(err)
						}
					}
				}
				if done, err := s.commit(home); !done || err != nil {
					t.Fatal(done, err)
				}
			}
			if done, err := s.align(20, home, true, 0); !done || err != nil {
				t.Fatal(done, err)
			}
			if got := s.contents(t); got != want {
				t.Fatal("the standby holds other contents than the one that took over")
			}
			next := uint64(home) + 1<<32
			sh := testShare(next, 1, 0b10)
			sh.header.since = home
			sh.add(recordPage, 5, filled('!'))
			s.mustTake(t, sh)
			if done, err := s.commit(next); !done || err != nil {
				t.Fatal(done, err)
			}
			if done, err := s.align(20, home, true, 0); !done || err != nil || s.applied != next {
				t.Fatalf("a late request undid checkpoint %d: %v, %v", next, done, err)
			}
			if done, err := s.align(21, home, true, 0); !done || err != nil || s.contents(t) != want {
				t.Fatalf("not back at the checkpoint before: %v, %v", done, err)
			}
		})
	}
}

// What another standby may not know of is not seen before it does.
func TestTakeOverHoldsTheEndOfTheOutput(t *testing.T) {
	s := lineageStandby(t, 7)
	dir := filepath.Dir(s.output.file.Name())
	r, err := s.takeOver()
	if err != nil || r.output.at != 12 || string(r.output.bytes) != "0\n" {
		t.Fatalf("took over with %+v, %v", r, err)
	}
	h, err := newHome(&files{dir: dir}, 1, func(uint32) {})
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	h.holdsFor(r, wire.WorkerMembers{Fallback: 0b100})
	if seen, _ := os.ReadFile(filepath.Join(dir, wire.WorkerOutputFile)); len(seen) != 12 || h.heldBytes() != 2 {
		t.Fatalf("%q is seen, %d bytes are held", seen, h.heldBytes())
	}
	if err := h.hold(false); err != nil {
		t.Fatal(err)
	}
	if seen, _ := os.ReadFile(filepath.Join(dir, wire.WorkerOutputFile)); len(seen) != 14 {
		t.Fatalf("%q is seen", seen)
	}
}

func TestStandbyThatCannotFollowSaysSo(t *testing.T) {
	s := lineageStandby(t, 4)
	if _, err := s.align(20, 7, false, 0); !errors.Is(err, errNoWayBack) {
		t.Errorf("aligned without the shares that it lacks: %v", err)
	}
	s = lineageStandby(t, 4)
	s.mustTake(t, lineageShare(7, 6))
	if _, err := s.commit(7); !errors.Is(err, errNoWayBack) {
		t.Errorf("took what was written since checkpoint 6 on top of 4: %v", err)
	}
	s = lineageStandby(t, 4)
	if _, err := s.align(20, 2, true, 0); !errors.Is(err, errNoWayBack) {
		t.Errorf("undid a checkpoint that all had: %v", err)
	}
}

// Home dies, and soon after the standby that took over: the other one goes on, and nothing that was seen is taken back.
func TestTwoLossesInTurn(t *testing.T) {
	const args = "0 1000"
	v := startVM(t, "count", args, 16*ident.MiB, 1)
	spec := testSpec(1, 1, "count", args, 16*ident.MiB)
	spec.Standby = true
	v.parts = append(v.parts, startPart(t, spec))
	v.addStandby(1, "count", args, 16*ident.MiB, 1)
	v.protect(2, 0b110)
	v.awaitProtected(0, 2)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+200)
	v.kill(0)
	seen := checkUnbroken(t, outputOf(v.parts[0]))
	for i, home := range []int{1, 2} {
		m := wire.WorkerMembers{Epoch: ident.Epoch(2 + i), Home: ident.Part(home), Restore: true, Image: ident.Part(home), Members: []wire.WorkerMember{v.member(home)}}
		m.Members[0].VCPUs = []ident.VCPU{0}
		if home == 1 {
			m.Fallback = 0b100
		}
		v.sendTo(home, wire.ToWorker{Members: &m})
		if home == 1 {
			<-v.parts[1].restored
			// Whether the other one is told of the new home before that one dies makes no difference to what may be seen.
			if rand.IntN(2) == 0 {
				v.protectFrom(3, 0b100, 1)
				awaitRecords(t, v, 1, seen+rand.IntN(100))
			} else {
				<-time.After(time.Duration(rand.IntN(50)) * time.Millisecond)
			}
			v.kill(1)
			seen = max(seen, checkUnbroken(t, outputOf(v.parts[1])))
			continue
		}
		<-v.parts[2].restored
		awaitRecords(t, v, 2, seen+100)
		checkUnbroken(t, outputOf(v.parts[2]))
	}
}
