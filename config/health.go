package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/cellvisor/cellvisor/health"
	"github.com/cellvisor/cellvisor/ident"
)

// Policy says what is done about a server whose hardware shows signs of failure.
type Policy string

// Policies.
const (
	PolicyOff     Policy = "off"     // nothing is measured
	PolicySuggest Policy = "suggest" // an event says what should be done
	PolicyAuto    Policy = "auto"    // the server cordons or drains itself
)

// Health says how a server looks after its own hardware.
//
//	health {
//	  policy  = "auto"                   # "off", "suggest" (the default) or "auto"
//	  every   = "30s"                    # between two looks
//	  file    = "/run/health"            # a plain file of further measures, a line each: NAME VALUE
//	  command = ["/usr/lib/check", "-q"] # a command that prints such lines
//	  rule "fans" {                      # a rule of that name replaces a default one
//	    measure = "fan.failures"
//	    kind    = "rise"                 # by limit within span; or "level": limit or more throughout span
//	    limit   = 1
//	    span    = "1h"
//	    act     = "drain"                # or "cordon"
//	  }
//	}
type Health struct {
	Policy  Policy
	Every   time.Duration
	File    string
	Command []string
	Rules   []health.Rule
}

// DefaultHealth is what holds without a block.
func DefaultHealth() Health {
	return Health{Policy: PolicySuggest, Every: 30 * time.Second, Rules: health.Defaults()}
}

func (p *parser) health(top *block, s *Server) {
	s.Health = DefaultHealth()
	c := top.one("health", false)
	if c == nil {
		return
	}
	b := p.open(c.Body, `block "health"`, "", c.DefRange, []string{"policy", "every", "file", "command"}, []hcl.BlockHeaderSchema{{Type: "rule", LabelNames: []string{"name"}}})
	h := &s.Health
	h.Policy = Policy(p.choice(b, "policy", string(PolicySuggest), string(PolicyOff), string(PolicySuggest), string(PolicyAuto)))
	h.Every = p.span(b, "every", h.Every, 100*time.Millisecond, time.Hour)
	h.File, _ = b.file("file")
	h.Command, _ = b.strings("command")
	for _, r := range b.blocks.OfType("rule") {
		p.rule(h, r)
	}
}

func (p *parser) rule(h *Health, c *hcl.Block) {
	name := c.Labels[0]
	b := p.open(c.Body, `block "rule"`, name, c.DefRange, []string{"measure", "kind", "limit", "span", "act"}, nil)
	r := health.Rule{Name: name, Kind: health.Rise, Act: health.Cordon, Span: 3600 * ident.Second}
	at := -1
	for i := range h.Rules {
		if h.Rules[i].Name == name {
			at, r = i, h.Rules[i]
		}
	}
	if at < 0 {
		r.Measure, _ = b.need("measure")
	} else {
		r.Measure, _ = b.str("measure", r.Measure)
	}
	r.Kind = health.Kind(p.choice(b, "kind", string(r.Kind), string(health.Rise), string(health.Level)))
	r.Act = health.Act(p.choice(b, "act", string(r.Act), string(health.Cordon), string(health.Drain)))
	if at < 0 && b.attrs["limit"] == nil {
		p.say(&b.at, fmt.Sprintf("rule %q: limit is missing", name))
	}
	r.Limit = b.integer("limit", r.Limit, 1, 1<<53)
	r.Span = ident.Micros(p.span(b, "span", time.Duration(r.Span)*time.Microsecond, 0, 30*24*time.Hour).Microseconds())
	if at >= 0 {
		h.Rules[at] = r
	} else {
		h.Rules = append(h.Rules, r)
	}
}

// span reads a length of time between two bounds.
func (p *parser) span(b *block, name string, def, low, high time.Duration) time.Duration {
	text, at := b.str(name, "")
	if text == "" {
		return def
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < low || d > high {
		p.say(at, fmt.Sprintf("%s %q must be a duration from %v to %v, such as \"30s\"", name, text, low, high))
		return def
	}
	return d
}

// formatHealth writes what differs from the defaults.
func formatHealth(f *hclwrite.File, h *Health) {
	def := DefaultHealth()
	if h.Policy == "" || h.Policy == def.Policy && h.Every == def.Every && h.File == "" && len(h.Command) == 0 && slices.Equal(h.Rules, def.Rules) {
		return
	}
	b := f.Body().AppendNewBlock("health", nil).Body()
	setString(b, "policy", string(h.Policy))
	setString(b, "every", h.Every.String())
	setString(b, "file", h.File)
	if len(h.Command) > 0 {
		var words []cty.Value
		for _, w := range h.Command {
			words = append(words, cty.StringVal(w))
		}
		b.SetAttributeValue("command", cty.ListVal(words))
	}
	for _, r := range h.Rules {
		if slices.Contains(def.Rules, r) {
			continue
		}
		b := b.AppendNewBlock("rule", []string{r.Name}).Body()
		setString(b, "measure", r.Measure)
		setString(b, "kind", string(r.Kind))
		b.SetAttributeValue("limit", cty.NumberIntVal(r.Limit))
		setString(b, "span", (time.Duration(r.Span) * time.Microsecond).String())
		setString(b, "act", string(r.Act))
	}
}
