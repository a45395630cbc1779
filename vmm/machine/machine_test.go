package machine

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/vmm/linux"
	"github.com/cellvisor/cellvisor/vmm/linux/linuxtest"
)

// screen is what a guest prints.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func runKernel(t *testing.T, kernel []byte, change func(*Config)) (Outcome, string) {
	t.Helper()
	out := &screen{}
	c := Config{Linux: linux.Config{Memory: 64 * ident.MiB, VCPUs: 2, Kernel: kernel}, Board: BoardConfig{Console: out}}
	if change != nil {
		change(&c)
	}
	m, err := New(openKVM(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	m.Start()
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatalf("the guest did not end; it printed %q\n%s", out, m.Dump())
	}
	return m.Wait(), out.String()
}

func TestMachinePrintsAndPowersOff(t *testing.T) {
	o, text := runKernel(t, linuxtest.Hello("hello\n"), func(c *Config) {
		c.Devices = func(b *Board) error { return b.AddEntropy() }
	})
	if o.Kind != PoweredOff || text != "hello\n" {
		t.Fatalf("%+v, printed %q", o, text)
	}
}

func TestResetEndsOrRestarts(t *testing.T) {
	o, _ := runKernel(t, linuxtest.Kernel(linuxtest.Reset()), nil)
	if o.Kind != WasReset {
		t.Fatalf("%+v", o)
	}
	// The second life differs by what the first has left in a place that survives: the console.
	out := &screen{}
	kernel := linuxtest.Kernel(append(linuxtest.Print("again\n"), linuxtest.Reset()...))
	c := Config{Linux: linux.Config{Memory: 64 * ident.MiB, VCPUs: 1, Kernel: kernel}, Board: BoardConfig{Console: out}, Restart: true}
	m, err := New(openKVM(t), c)
	if err != nil {
		t.Fatal(err)
	}
	m.Start()
	deadline := time.After(time.Minute)
	for tick := time.NewTicker(time.Millisecond); bytes.Count([]byte(out.String()), []byte("again\n")) < 3; {
		select {
		case <-tick.C:
		case <-m.Done():
			t.Fatalf("ended: %+v", m.Wait())
		case <-deadline:
			t.Fatalf("printed %q only", out)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if o := m.Wait(); o.Kind != Stopped || o.Resets < 2 {
		t.Errorf("%+v", o)
	}
}

func TestUnknownAccessesAreHarmless(t *testing.T) {
	// in eax, 0x1234; mov eax, [0xd0000000]; mov [0xd0000000], eax
	code := []byte{0x66, 0xba, 0x34, 0x12, 0xed, 0xa1, 0, 0, 0, 0xd0, 0xa3, 0, 0, 0, 0xd0}
	o, _ := runKernel(t, linuxtest.Kernel(append(code, linuxtest.PowerOff()...)), nil)
	if o.Kind != PoweredOff {
		t.Fatalf("%+v", o)
	}
}
