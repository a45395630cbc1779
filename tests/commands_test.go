package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cellvisor/cellvisor/local"
)

// commands are what scripts can do beyond testscript's own:
//
//	exits CODE CMD…          run a command that must end with this exit code
//	within DURATION CMD…     run a command again and again until it succeeds
//	json PATH WANT           the JSON on stdout has this value at PATH, as in workers.0.server; * is any
//	                         entry, name=b-1 the entry whose name is b-1, len the number of entries; >=N is any number from N on
//	within DURATION json PATH WANT CMD…   both
//	kill9 SERVER…            SIGKILL to the serve processes
//	killcell CELL            SIGKILL to all processes of a cell at once
//	poweroff                 SIGKILL to all processes of the cluster at once
//	killworker VM SERVER     SIGKILL to the worker of a VM on a server
//	freeze SERVER, thaw SERVER   SIGSTOP and SIGCONT to all processes of a server
//	noprocess                no process of the script's cluster is left
//	occupy DIR SERVER        take the server's peer port until the script ends
//	foreign FILE             give a server's configuration another cluster's ID
//	imagepayload FILE PAGES, imageshared PROCESSES KIB   see image_test.go
//	counts VM LEAST          the VM's output is exactly 0, 1, 2, …, and has at least that many records, now or a little later
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"exits":      cmdExits,
	"within":     cmdWithin,
	"json":       cmdJSON,
	"kill9":      signalCmd("serve", syscall.SIGKILL),
	"killcell":   cmdKillCell,
	"killworker": cmdKillWorker,
	"poweroff":   cmdPowerOff,
	"freeze":     signalCmd("", syscall.SIGSTOP),
	"thaw":       signalCmd("", syscall.SIGCONT),
	"noprocess":  cmdNoProcess,
	"counts":     cmdCounts,
	"occupy":     cmdOccupy,
	"foreign":    cmdForeign,
	"tinykernel": cmdTinyKernel,

	"imagepayload": cmdImagePayload,
	"imageshared":  cmdImageShared,
}

// run runs a command in the script's environment and returns its output and exit code.
func run(ts *testscript.TestScript, args []string) (stdout, stderr string, code int) {
	path, err := exec.LookPath(args[0])
	if args[0] == "cellvisor" {
		path, err = program, nil
	}
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"D", "CELLVISOR_DIR", "CELLVISOR_ADDR", "PATH", "HOME", "NO_COLOR", "REQUIRE_KVM", "TMPDIR", "WORK", "BAD"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("running %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE CMD…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	out, errs, code := run(ts, args[1:])
	fmt.Fprint(ts.Stdout(), out)
	fmt.Fprint(ts.Stderr(), errs)
	if code != want {
		ts.Fatalf("%s: exit code %d, want %d\n%s%s", strings.Join(args[1:], " "), code, want, out, errs)
	}
}

func cmdWithin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: within DURATION [json PATH WANT] CMD…")
	}
	patience, err := time.ParseDuration(args[0])
	ts.Check(err)
	args = args[1:]
	path, want := "", ""
	if args[0] == "json" && len(args) > 3 {
		path, want, args = args[1], args[2], args[3:]
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for {
		out, errs, code := run(ts, args)
		why := fmt.Sprintf("exit code %d", code)
		if path != "" {
			why = mismatch(out, path, want)
		}
		if path == "" && code == 0 || path != "" && why == "" {
			fmt.Fprint(ts.Stdout(), out)
			fmt.Fprint(ts.Stderr(), errs)
			ts.Logf("(after %v)", time.Since(start).Round(time.Millisecond))
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			ts.Fatalf("%s: not within %v: %s\n%s%s", strings.Join(args, " "), patience, why, out, errs)
		}
	}
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: json PATH WANT")
	}
	if why := mismatch(ts.ReadFile("stdout"), args[0], args[1]); (why == "") == neg {
		ts.Fatalf("json %s %s: %s\n%s", args[0], args[1], why, ts.ReadFile("stdout"))
	}
}

// mismatch says how text differs from having want at path, "" if it has it.
func mismatch(text, path, want string) string {
	var v any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return "not JSON: " + err.Error()
	}
	got := lookup(v, strings.Split(path, "."))
	for _, g := range got {
		if g == want {
			return ""
		}
		if least, ok := strings.CutPrefix(want, ">="); ok {
			if n, err := strconv.ParseUint(g, 10, 64); err == nil {
				if l, err := strconv.ParseUint(least, 10, 64); err == nil && n >= l {
					return ""
				}
			}
		}
	}
	return fmt.Sprintf("%s is %s, want %s", path, strings.Join(got, ", "), want)
}

// lookup returns the values at a path as text; * follows all entries of a list.
func lookup(v any, path []string) []string {
	if len(path) == 0 {
		if s, ok := v.(string); ok {
			return []string{s}
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return []string{err.Error()}
		}
		return []string{string(raw)}
	}
	switch v := v.(type) {
	case map[string]any:
		if next, ok := v[path[0]]; ok {
			return lookup(next, path[1:])
		}
	case []any:
		switch path[0] {
		case "len":
			return []string{strconv.Itoa(len(v))}
		case "*":
			var all []string
			for _, e := range v {
				all = append(all, lookup(e, path[1:])...)
			}
			return all
		}
		if name, value, ok := strings.Cut(path[0], "="); ok { // name=b-1: the entry whose field is this
			for _, e := range v {
				if m, isMap := e.(map[string]any); isMap && fmt.Sprint(m[name]) == value {
					return lookup(e, path[1:])
				}
			}
			return []string{"missing"}
		}
		if i, err := strconv.Atoi(path[0]); err == nil && i < len(v) {
			return lookup(v[i], path[1:])
		}
	}
	return []string{"missing"}
}

// signalCmd signals the processes of servers; kind "" means all of them.
func signalCmd(kind local.Kind, sig syscall.Signal) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, servers []string) {
		for _, name := range servers {
			n := 0
			for _, m := range processes(ts) {
				if m.Server == name && (kind == "" || m.Kind == kind) {
					ts.Check(local.Signal(sig, m.Process)) // what another one's end has ended by now is no error
					n++
					if sig == syscall.SIGKILL {
						awaitEnd(ts, m.Process)
					}
				}
			}
			if n == 0 {
				ts.Fatalf("server %s has no process", name)
			}
		}
	}
}

// awaitEnd waits for a killed process to be gone.
func awaitEnd(ts *testscript.TestScript, p local.Process) {
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-tick.C:
		case <-deadline.C:
			ts.Fatalf("process %d does not end", p.PID)
		}
	}
}

func processes(ts *testscript.TestScript) []local.Member {
	members, err := local.Find(ts.Getenv("D"))
	ts.Check(err)
	return members
}

func cmdKillCell(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: killcell CELL")
	}
	_, _, err := local.KillCell(ts.Getenv("D"), args[0])
	ts.Check(err)
}

func cmdPowerOff(ts *testscript.TestScript, _ bool, _ []string) {
	members, err := local.Find(ts.Getenv("D"))
	ts.Check(err)
	if len(members) == 0 {
		ts.Fatalf("no process to kill")
	}
	for _, m := range members {
		if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			ts.Fatalf("%v", err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for {
		members, err = local.Find(ts.Getenv("D"))
		ts.Check(err)
		if len(members) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v do not end", members)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func cmdKillWorker(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: killworker VM SERVER")
	}
	out, _, _ := run(ts, []string{"cellvisor", "vm", "show", args[0], "-o", "json"})
	var vm struct {
		Workers []struct {
			Server string
			PID    int
		}
	}
	ts.Check(json.Unmarshal([]byte(out), &vm))
	for _, w := range vm.Workers {
		if w.Server == args[1] {
			ts.Check(syscall.Kill(w.PID, syscall.SIGKILL))
			return
		}
	}
	ts.Fatalf("VM %s has no worker on %s: %s", args[0], args[1], out)
}

func cmdNoProcess(ts *testscript.TestScript, _ bool, _ []string) {
	if left := processes(ts); len(left) > 0 {
		ts.Fatalf("processes are left: %v", left)
	}
}

// countsPatience is how long cmdCounts waits for records: a busy machine may run a guest at a small part of its speed.
const countsPatience = 30 * time.Second

// cmdCounts checks that a VM's output is 0, 1, 2, …, and waits until it has as many records as are asked for.
func cmdCounts(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 && (len(args) != 3 || args[2] != "console") {
		ts.Fatalf("usage: counts VM LEAST [console]")
	}
	read := []string{"cellvisor", "vm", "output", args[0]}
	if len(args) == 3 {
		read = []string{"cellvisor", "vm", "console", args[0], "--print"}
	}
	least, err := strconv.Atoi(args[1])
	ts.Check(err)
	deadline := time.NewTimer(countsPatience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		out, errs, code := run(ts, read)
		if code != 0 {
			ts.Fatalf("%v: exit code %d: %s", read, code, errs)
		}
		out = out[:strings.LastIndexByte(out, '\n')+1] // a line may be cut by a checkpoint
		lines := strings.Fields(out)
		for i, l := range lines {
			if l != strconv.Itoa(i) {
				ts.Fatalf("record %d is %s", i, l)
			}
		}
		if len(lines) >= least {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			ts.Fatalf("VM %s has %d records, at least %d wanted", args[0], len(lines), least)
		}
	}
}

func cmdOccupy(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: occupy DIR SERVER")
	}
	c, err := local.Load(args[0])
	ts.Check(err)
	srv := c.Server(args[1])
	if srv == nil {
		ts.Fatalf("no server %s", args[1])
	}
	l, err := net.Listen("tcp", srv.Peer)
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

func cmdForeign(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: foreign FILE")
	}
	text := ts.ReadFile(args[0])
	changed := regexp.MustCompile(`"[0-9a-f]{32}"`).ReplaceAllString(text, `"`+strings.Repeat("f0", 16)+`"`)
	if changed == text {
		ts.Fatalf("%s names no cluster ID", args[0])
	}
	ts.Check(os.WriteFile(args[0], []byte(changed), 0o600))
}
