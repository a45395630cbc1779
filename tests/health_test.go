package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// healthBlock makes a server look at a plain file ten times a second.
const healthBlock = `
health {
  policy = %q
  every  = "100ms"
  file   = %q
  rule "fans" {
    measure = "fan.failures"
    limit   = 2
    act     = "drain"
  }
}
`

// Signs of failure in a plain file: where the policy is to suggest, an event says what is due; where it is auto, the server drains itself, its VM goes on
// elsewhere, and the events hold the evidence.
func TestHealth(t *testing.T) {
	dir, env := drillEnv(t)
	cellvisor := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cellvisor %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	until := func(what string, holds func() bool) {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(drainPatience); !holds(); <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s\n%s", what, cellvisor("events"))
			}
		}
	}
	cellvisor("up", "--detach", "--memory", "256MiB", "--slots", "8")
	cellvisor("down")
	measures := t.TempDir()
	say := func(server string, failures int) {
		t.Helper()
		file := filepath.Join(measures, server)
		text := fmt.Sprintf("fan.failures %d\n", failures)
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	for server, policy := range map[string]string{"a-1": "suggest", "b-1": "auto"} {
		say(server, 7) // what was counted before does not matter
		f, err := os.OpenFile(filepath.Join(dir, server+".hcl"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(f, healthBlock, policy, filepath.Join(measures, server)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cellvisor("up", "--detach")
	cellvisor("vm", "run", "web", "--payload", "count", "--args", "0 200", "--span", "b")
	for failures := 7; ; failures += 2 { // the first look after the start is the base: it may come late
		say("a-1", failures)
		say("b-1", failures)
		events := cellvisor("events")
		if strings.Contains(events, "server a-1: fan.failures rose by") && strings.Contains(events, "server b-1: fan.failures rose by") {
			break
		}
		if failures > 2000 {
			t.Fatalf("nothing is found:\n%s", events)
		}
	}
	until("server b-1 is drained", func() bool { return strings.Contains(cellvisor("events"), "op.done") })
	events := cellvisor("events")
	for _, want := range []string{"`cellvisor server drain a-1` is due", "its policy is to drain it", "server b-1"} {
		if !strings.Contains(events, want) {
			t.Errorf("the events lack %q:\n%s", want, events)
		}
	}
	if ops := cellvisor("op", "ls", "-o", "json"); !strings.Contains(ops, "health rule fans") || !strings.Contains(ops, "fan.failures rose by") || strings.Contains(ops, "a-1 ") {
		t.Errorf("the operations:\n%s", ops)
	}
	if vm := cellvisor("vm", "show", "web", "-o", "json"); strings.Contains(vm, `"home": "b-1"`) || !strings.Contains(vm, `"state": "running"`) {
		t.Errorf("the VM:\n%s", vm)
	}
	if json := cellvisor("events", "-o", "json"); !strings.Contains(json, `"rule":"fans"`) || !strings.Contains(json, `"policy":"auto"`) {
		t.Errorf("the evidence:\n%s", json)
	}
}
