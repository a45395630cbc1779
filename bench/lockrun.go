package bench

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cellvisor/cellvisor/api"
)

// runLocks runs VMs side by side to their end and returns how far each was when, all by one clock.
func runLocks(ctx context.Context, c *cluster, increments int, names ...string) ([]curve, error) {
	ctx, cancel := context.WithTimeout(ctx, runPatience)
	defer cancel()
	var vms []*api.VM
	var followers []*lockFollower
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	began := time.Now()
	for _, name := range names {
		v, err := c.start(ctx, lockSpec(name, increments))
		if err != nil {
			return nil, err
		}
		f := &lockFollower{began: began}
		following.Go(func() { _ = c.client.Console(ctx, v.GetName(), 0, true, f) })
		vms, followers = append(vms, v), append(followers, f)
	}
	var out []curve
	for i, v := range vms {
		v, err := c.client.Wait(ctx, v.GetName(), v.GetId(), api.WaitVMRequest_UNTIL_ENDED, nil)
		if err != nil {
			return nil, err
		}
		text := c.console(ctx, v)
		if v.GetState() != api.VMState_VM_STATE_EXITED || v.GetExitStatus() != 0 {
			return nil, fmt.Errorf("VM %s is %s, status %d: %s\n%s", v.GetName(), v.GetState().Word(), v.GetExitStatus(), v.GetReason(), text)
		}
		k := readCurve(text)
		if len(k) == 0 {
			return nil, fmt.Errorf("VM %s printed no progress:\n%s", v.GetName(), text)
		}
		out = append(out, k.shifted(followers[i].offset()))
	}
	for _, v := range vms {
		if err := c.remove(ctx, v.GetName()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lockFollower finds out when a guest's clock read zero: no later than each line was seen, less what the line says.
type lockFollower struct {
	began time.Time

	mu    sync.Mutex
	line  []byte  // protected by mu
	least float64 // protected by mu; milliseconds after began
	known bool    // protected by mu
}

// Write implements io.Writer.
func (f *lockFollower) Write(p []byte) (int, error) {
	now := float64(time.Since(f.began).Microseconds()) / 1000
	f.mu.Lock()
	defer f.mu.Unlock()
	f.line = append(f.line, p...)
	for {
		end := bytes.IndexByte(f.line, '\n')
		if end < 0 {
			return len(p), nil
		}
		for _, at := range readCurve(string(f.line[:end])) {
			if zero := now - at.millis; !f.known || zero < f.least {
				f.least, f.known = zero, true
			}
		}
		f.line = f.line[end+1:]
	}
}

func (f *lockFollower) offset() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.least
}

// curve is how many increments each vCPU had made after how many milliseconds. It begins with none, when the guest began.
type curve []progress

type progress struct{ increments, millis float64 }

// readCurve finds lines such as "lock: 1000 of 10000, 84 ms".
func readCurve(text string) curve {
	var c curve
	for line := range strings.Lines(text) {
		var n, of, ms int
		if k, _ := fmt.Sscanf(line, "lock: %d of %d, %d ms", &n, &of, &ms); k == 3 && ms > 0 {
			c = append(c, progress{float64(n), float64(ms)})
		}
	}
	return c
}

// shifted puts the curve on another clock, on which the guest's reads zero at a time.
func (c curve) shifted(zero float64) curve {
	out := curve{{0, zero}}
	for _, p := range c {
		out = append(out, progress{p.increments, p.millis + zero})
	}
	return out
}

func (c curve) begin() float64 { return c[0].millis }
func (c curve) end() float64   { return c[len(c)-1].millis }

// at is how many increments there were at a time, interpolated between lines.
func (c curve) at(millis float64) float64 {
	if millis <= c.begin() {
		return 0
	}
	for i := 1; i < len(c); i++ {
		if a, b := c[i-1], c[i]; b.millis >= millis && b.millis > a.millis {
			return a.increments + (b.increments-a.increments)*(millis-a.millis)/(b.millis-a.millis)
		}
	}
	return c[len(c)-1].increments
}

// throughput sums up the curves for the time in which all ran, in increments a second; before it and after it the rest had the machine for itself.
func throughput(curves []curve) float64 {
	begin, end := curves[0].begin(), curves[0].end()
	for _, c := range curves {
		begin, end = max(begin, c.begin()), min(end, c.end())
	}
	if end <= begin {
		return 0
	}
	sum := 0.0
	for _, c := range curves {
		sum += c.at(end) - c.at(begin)
	}
	return round3(sum / (end - begin) * 1000)
}
