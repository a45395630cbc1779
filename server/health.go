package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cellvisor/cellvisor/cells"
	"github.com/cellvisor/cellvisor/config"
	"github.com/cellvisor/cellvisor/health"
	"github.com/cellvisor/cellvisor/ident"
)

// caretaker looks after the hardware of this server: it reads what the machine says about itself, and acts on what the rules find.
type caretaker struct {
	s      *Server
	cfg    config.Health
	core   *health.Core
	sysfs  string            // "/sys"
	told   map[string]string // sources that could not be read, and why: each reason is logged once
	queued []health.Finding  // not acted on yet
}

const (
	commandPatience = 10 * time.Second
	maxHealthBytes  = 64 << 10
)

func newCaretaker(s *Server) *caretaker {
	return &caretaker{s: s, cfg: s.cfg.Health, core: health.New(s.cfg.Health.Rules), sysfs: "/sys", told: make(map[string]string)}
}

// run measures until ctx ends.
func (c *caretaker) run(ctx context.Context) {
	if c.cfg.Policy == config.PolicyOff || c.cfg.Policy == "" || c.s.cfg.Role == config.RoleWitness {
		return
	}
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for {
		c.queued = append(c.queued, c.core.Step(bootMicros(), c.measure(ctx))...)
		c.queued = c.queued[max(0, len(c.queued)-64):]
		// Without a quorum nothing can be said or done: a finding waits.
		for len(c.queued) > 0 && ctx.Err() == nil && c.act(ctx, c.queued[0]) == nil {
			c.queued = c.queued[1:]
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// measure reads all sources. What the machine does not have is left out.
func (c *caretaker) measure(ctx context.Context) []health.Sample {
	var out []health.Sample
	for _, m := range []struct {
		name    string
		hottest bool
		divide  int64
		files   []string
	}{
		{health.MemoryCorrected, false, 1, []string{"devices/system/edac/mc/mc*/ce_count"}},
		{health.MemoryUncorrected, false, 1, []string{"devices/system/edac/mc/mc*/ue_count"}},
		{health.Temperature, true, 1000, []string{"class/hwmon/hwmon*/temp*_input", "class/thermal/thermal_zone*/temp"}},
		{health.LinkErrors, false, 1, []string{"class/net/*/statistics/rx_errors", "class/net/*/statistics/tx_errors"}},
		{health.DiskErrors, false, 1, []string{"block/*/device/ioerr_cnt"}},
	} {
		if value, there := c.readAll(m.files, m.hottest); there {
			out = append(out, health.Sample{Measure: m.name, Value: value / m.divide})
		}
	}
	if c.cfg.File != "" {
		raw, err := readHealthFile(c.cfg.File)
		out = append(out, c.parse("file "+c.cfg.File, raw, err)...)
	}
	if len(c.cfg.Command) > 0 {
		ctx, cancel := context.WithTimeout(ctx, commandPatience)
		defer cancel()
		cmd := exec.CommandContext(ctx, c.cfg.Command[0], c.cfg.Command[1:]...)
		raw, err := cmd.Output()
		out = append(out, c.parse("command "+c.cfg.Command[0], raw[:min(len(raw), maxHealthBytes)], err)...)
	}
	return out
}

// readAll adds up the numbers in files, or takes the highest.
func (c *caretaker) readAll(patterns []string, highest bool) (sum int64, there bool) {
	for _, pattern := range patterns {
		files, _ := filepath.Glob(filepath.Join(c.sysfs, pattern))
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				continue // sensors come and go
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 0, 64)
			if err != nil {
				continue
			}
			if highest && there {
				sum = max(sum, n)
			} else {
				sum += n
			}
			there = true
		}
	}
	return sum, there
}

func readHealthFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxHealthBytes {
		return nil, fmt.Errorf("it is no plain file of at most %d bytes", maxHealthBytes)
	}
	return os.ReadFile(path)
}

// parse reads lines of NAME VALUE. A source that cannot be read is logged once for each reason, and does not count as healthy or sick.
func (c *caretaker) parse(source string, raw []byte, err error) (out []health.Sample) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	for _, line := range strings.Split(string(raw), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") || err != nil {
			continue
		}
		n, perr := int64(0), error(nil)
		if len(fields) == 2 {
			n, perr = strconv.ParseInt(fields[1], 0, 64)
		}
		if len(fields) != 2 || perr != nil || len(fields[0]) > 64 {
			why = fmt.Sprintf("line %q is not NAME VALUE", line[:min(len(line), 80)])
			continue
		}
		out = append(out, health.Sample{Measure: fields[0], Value: n})
	}
	if why != "" && c.told[source] != why {
		c.s.log.Warn().Str("source", source).Msg("health: " + why)
	}
	c.told[source] = why
	return out
}

// act says what was found, and does what the policy wants. An error means that it must be tried again.
func (c *caretaker) act(ctx context.Context, f health.Finding) error {
	name := c.s.cfg.Name
	fields := map[string]string{
		"rule": f.Rule.Name, "measure": f.Rule.Measure, "value": fmt.Sprint(f.Value), "from": fmt.Sprint(f.From), "limit": fmt.Sprint(f.Rule.Limit),
		"span_ms": fmt.Sprint(int64(f.Rule.Span / ident.Millisecond)), "over_ms": fmt.Sprint(int64(f.Over / ident.Millisecond)),
		"act": string(f.Rule.Act), "policy": string(c.cfg.Policy),
	}
	text := fmt.Sprintf("server %s: %s: `cellvisor server %s %s` is due", name, f.Evidence, f.Rule.Act, name)
	if c.cfg.Policy == config.PolicyAuto {
		text = fmt.Sprintf("server %s: %s: its policy is to %s it", name, f.Evidence, f.Rule.Act)
	}
	if err := c.report(ctx, text, fields); err != nil || c.cfg.Policy != config.PolicyAuto {
		return err
	}
	err := c.cordon(ctx)
	if err == nil && f.Rule.Act == health.Drain {
		err = c.drain(ctx, f)
	}
	if err != nil {
		fields["problem"] = err.Error()
		return c.report(ctx, fmt.Sprintf("server %s was not taken out of use as it should be: %v", name, err), fields)
	}
	return nil
}

func (c *caretaker) report(ctx context.Context, text string, fields map[string]string) error {
	for k, v := range fields {
		fields[k] = v[:min(len(v), 500)]
	}
	return c.s.propose(ctx, cells.Command{Report: &cells.Report{Kind: cells.EventServerHealth, Subject: "server " + string(c.s.cfg.Name), Text: text, Fields: fields}}, nil)
}

func (c *caretaker) cordon(ctx context.Context) error {
	if self := c.s.board.now().state.ServerNamed(c.s.cfg.Name); self != nil && self.Cordoned {
		return nil
	}
	return c.s.propose(ctx, cells.Command{Cordon: &cells.Cordon{Server: c.s.cfg.Name, On: true}}, nil)
}

func (c *caretaker) drain(ctx context.Context, f health.Finding) error {
	return c.s.propose(ctx, cells.Command{StartOperation: &cells.StartOperation{
		Kind: cells.OpDrain, Servers: []ident.ServerName{c.s.cfg.Name}, Reason: f.Evidence, By: "health rule " + f.Rule.Name,
	}}, nil)
}
