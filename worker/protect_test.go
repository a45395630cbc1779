package worker

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/wire"
)

// addStandby starts a part that holds a replica of v, and protects v with it.
func (v *testVM) addStandby(seq uint64, builtin, args string, memory ident.Bytes, vcpus int) ident.Part {
	v.t.Helper()
	id := len(v.parts)
	return v.addStandbyOf(seq, testSpec(id, vcpus, builtin, args, memory))
}

func (v *testVM) addStandbyOf(seq uint64, spec wire.WorkerSpec) ident.Part {
	v.t.Helper()
	id := int(spec.Part)
	v.pause(true) // however long a standby takes to start, there is a guest to protect then
	spec.Standby = true
	p := startPart(v.t, spec)
	v.parts = append(v.parts, p)
	v.lease()
	v.protect(seq, ident.PartSet(0).Set(ident.Part(id)))
	return ident.Part(id)
}

func (v *testVM) lease() {
	v.send(wire.ToWorker{Lease: &wire.WorkerLease{UntilBootMicros: bootMicros() + 600*ident.Second}})
}

func (v *testVM) member(i int) wire.WorkerMember {
	return wire.WorkerMember{Part: ident.Part(i), VCPUs: v.parts[i].vcpus, Server: ident.ServerID(i + 1), Addr: v.parts[i].ready.PageAddr, ReplicaAddr: v.parts[i].ready.Replica, Level: v.parts[i].ready.Level}
}

func (v *testVM) protect(seq uint64, standbys ident.PartSet) { v.protectFrom(seq, standbys, 0) }

func (v *testVM) protectFrom(seq uint64, standbys ident.PartSet, home ident.Part) {
	p := wire.WorkerProtect{Seq: seq, Standbys: standbys, Home: home, CheckpointMillis: 10}
	for i, part := range v.parts {
		if !part.killed {
			p.Members = append(p.Members, v.member(i))
		}
	}
	for i, part := range v.parts {
		if !part.killed {
			v.sendTo(i, wire.ToWorker{Protect: &p})
		}
	}
}

// pause lets the guest stand still, or go on.
func (v *testVM) pause(on bool) {
	v.pauses++
	for i, part := range v.parts {
		if !part.killed {
			v.sendTo(i, wire.ToWorker{Pause: &wire.WorkerPause{Seq: v.pauses, On: on}})
		}
	}
}

// awaitProtected waits until home says that the VM is protected. The guest goes on then.
func (v *testVM) awaitProtected(home int, seq uint64) {
	v.t.Helper()
	for deadline := time.After(time.Minute); ; {
		select {
		case p := <-v.parts[home].protected:
			if p.Seq == seq {
				v.pause(false)
				return
			}
		case <-deadline:
			v.t.Fatalf("not protected\n%s", v.logs())
		}
	}
}

// kill kills a part's process as a failing machine would.
func (v *testVM) kill(part int) {
	v.t.Helper()
	p := v.parts[part]
	if err := p.cmd.Process.Kill(); err != nil {
		v.t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p.killed = true
}

func outputOf(p *part) []string {
	b, _ := os.ReadFile(filepath.Join(p.dir, wire.WorkerOutputFile))
	return strings.Fields(string(b))
}

// checkUnbroken checks that records are 0, 1, 2, … and returns how many.
func checkUnbroken(t *testing.T, records []string) int {
	t.Helper()
	for i, s := range records {
		if s != strconv.Itoa(i) {
			t.Fatalf("record %d is %s: the output is broken", i, s)
		}
	}
	return len(records)
}

// awaitRecords waits until a part's output log has at least n records.
func awaitRecords(t *testing.T, v *testVM, part, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(outputOf(v.parts[part])) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d records, want %d\n%s", len(outputOf(v.parts[part])), n, v.logs())
		}
		<-time.After(time.Millisecond)
	}
}

func TestStandbyTakesOverACountingGuest(t *testing.T) {
	const args = "0 1000"
	v := startVM(t, "count", args, 16*ident.MiB, 1)
	standby := v.addStandby(1, "count", args, 16*ident.MiB, 1)
	v.awaitProtected(0, 1)
	awaitRecords(t, v, 0, len(outputOf(v.parts[0]))+300)
	v.kill(0)
	seen := checkUnbroken(t, outputOf(v.parts[0]))
	m := wire.WorkerMembers{Epoch: 2, Home: standby, Restore: true, Image: standby, Members: []wire.WorkerMember{v.member(1)}}
	m.Members[0].VCPUs = []ident.VCPU{0}
	began := time.Now()
	v.sendTo(1, wire.ToWorker{Members: &m})
	r := <-v.parts[1].restored
	awaitRecords(t, v, 1, seen+100)
	t.Logf("checkpoint %d, remap %d us, resume %d us, 100 records after %v", r.Checkpoint, r.RemapMicros, r.ResumeMicros, time.Since(began))
	if n := checkUnbroken(t, outputOf(v.parts[1])); n < seen {
		t.Fatalf("the outside has seen %d records, the standby goes on from %d", seen, n)
	}
}

func (v *testVM) sendTo(part int, m wire.ToWorker) {
	v.t.Helper()
	if err := wire.WriteJSON(v.parts[part].conn, m); err != nil {
		v.t.Fatalf("%v\n%s", err, v.parts[part].log())
	}
}

// A VM over two parts that increments shared counters loses one part, home or not: the sums must still be exact.
func TestSpanningLockSurvivesTheLossOfAPart(t *testing.T) {
	for _, lost := range []int{0, 1} {
		t.Run(strconv.Itoa(lost), func(t *testing.T) {
			const args = "8000"
			v := startVM(t, "lock", args, 16*ident.MiB, 1, 2)
			standby := v.addStandby(1, "lock", args, 16*ident.MiB, 3)
			v.awaitProtected(0, 1)
			v.kill(lost)
			survivor := 1 - lost
			m := wire.WorkerMembers{Epoch: 2, Home: standby, Restore: true, Image: standby, Members: []wire.WorkerMember{v.member(survivor), v.member(2)}}
			vcpus := [][]ident.VCPU{{0}, {1, 2}}
			m.Members[0].VCPUs, m.Members[1].VCPUs = vcpus[survivor], vcpus[lost]
			slices.SortFunc(m.Members, func(a, b wire.WorkerMember) int { return int(a.Part) - int(b.Part) })
			v.sendTo(survivor, wire.ToWorker{Members: &m})
			v.sendTo(2, wire.ToWorker{Members: &m})
			v.mustExit(2 * time.Minute)
			b, _ := os.ReadFile(filepath.Join(v.parts[2].dir, wire.WorkerConsoleFile))
			if !strings.Contains(string(b), "exact") {
				t.Errorf("console:\n%s", b)
			}
			t.Logf("%s", b)
		})
	}
}
