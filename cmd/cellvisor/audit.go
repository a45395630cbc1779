package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cellvisor/cellvisor/api"
	"github.com/cellvisor/cellvisor/audit"
)

// auditCmd groups what can be asked of the logs of what operators did.
func (a *app) auditCmd() *cobra.Command {
	return a.noun("audit", "Show and verify the log of what operators did", a.auditLsCmd(), a.auditVerifyCmd())
}

// act is one act of an operator: what was asked, and how it ended.
type act struct {
	At     time.Time       `json:"at"`
	Server string          `json:"server"`
	Seq    uint64          `json:"seq"`
	Who    string          `json:"who"`
	Via    string          `json:"via,omitempty"`
	From   string          `json:"from"`
	What   string          `json:"what"`
	Args   json.RawMessage `json:"args,omitempty"`
	Result string          `json:"result"`
}

// acts joins entries of one log.
func acts(entries []audit.Entry) []act {
	var out []act
	at := map[uint64]int{}
	for _, e := range entries {
		switch e.Kind {
		case audit.Asked, audit.Refused:
			at[e.Seq] = len(out)
			out = append(out, act{At: e.At, Server: e.Server, Seq: e.Seq, Who: e.Who, Via: e.Via, From: e.From, What: e.What, Args: e.Args,
				Result: cmp.Or(e.Result, "not known: the server ended first")})
		case audit.Done:
			if i, ok := at[e.Of]; ok {
				out[i].Result = e.Result
			}
		case audit.Started:
			if e.Result != "ok" {
				out = append(out, act{At: e.At, Server: e.Server, Seq: e.Seq, What: "(log begun anew)", Result: e.Result})
			}
		}
	}
	return out
}

func (a *app) auditLsCmd() *cobra.Command {
	var server, who string
	var limit int
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what operators did, the latest last",
		Long: `Lists the acts that the servers have recorded: who (by certificate, or by user on the machine), what, with which arguments, and how it ended. Refused
attempts are in it. An act that one server passed on to another is in the logs of both.`,
		Example: "  cellvisor audit ls\n  cellvisor audit ls --who alice -o json\n  cellvisor audit ls --server a-1 --limit 0",
		Args:    args(0, 0, ""),
		RunE: a.withClient(func(ctx context.Context, c *api.Client, _ []string) error {
			logs, missing, err := fetchAudit(ctx, c, server)
			if err != nil {
				return err
			}
			var all []act
			for _, l := range logs {
				r, err := audit.Verify(bytes.NewReader(l.text), nil)
				if err != nil {
					return fmt.Errorf("log of server %s: %w; `cellvisor audit verify` says more", l.server, err)
				}
				all = append(all, acts(r.Entries)...)
			}
			all = slices.DeleteFunc(all, func(x act) bool { return who != "" && !strings.Contains(x.Who, who) })
			slices.SortStableFunc(all, func(x, y act) int { return x.At.Compare(y.At) })
			if limit > 0 && len(all) > limit {
				all = all[len(all)-limit:]
			}
			for _, m := range missing {
				fmt.Fprintf(a.err, "cellvisor: %s\n", m)
			}
			return a.showActs(all)
		}),
	}
	cmd.Flags().StringVar(&server, "server", "", "the log of this server only")
	cmd.Flags().StringVar(&who, "who", "", "acts of those whose name holds this")
	cmd.Flags().IntVar(&limit, "limit", 100, "the last so many; 0 for all")
	return cmd
}

func (a *app) showActs(all []act) error {
	return show(a, all, func(x act) act { return x }, func(x act) string { return fmt.Sprintf("%s/%d", x.Server, x.Seq) }, []column[act]{
		{"TIME", func(x act) string { return x.At.Local().Format(time.DateTime) }, false},
		{"WHO", func(x act) string { return x.Who }, false},
		{"WHAT", func(x act) string { return x.What }, false},
		{"ARGS", func(x act) string { return string(x.Args) }, false},
		{"RESULT", func(x act) string { return x.Result }, false},
		{"SERVER", func(x act) string { return x.Server }, true},
		{"FROM", func(x act) string { return x.From }, true},
		{"VIA", func(x act) string { return x.Via }, true},
	})
}

// auditLog is one server's log as it sent it.
type auditLog struct {
	server string
	text   []byte
	head   audit.Head
}

// fetchAudit gets the log of one server, or of all; missing says which could not be had.
func fetchAudit(ctx context.Context, c *api.Client, server string) (logs []auditLog, missing []string, err error) {
	if server != "" {
		l, err := fetchOne(ctx, c, server)
		return []auditLog{l}, nil, err
	}
	var list *api.ListServersResponse
	err = c.Call(ctx, func(ctx context.Context, s api.CellvisorClient) (err error) {
		list, err = s.ListServers(ctx, &api.ListServersRequest{})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	var last error
	for _, s := range list.GetServers() {
		l, err := fetchOne(ctx, c, s.GetName())
		if err != nil {
			last = err
			missing = append(missing, fmt.Sprintf("the log of server %s is not here: %s", s.GetName(), api.Message(err)))
			continue
		}
		logs = append(logs, l)
	}
	if len(logs) == 0 && last != nil {
		return nil, nil, last
	}
	return logs, missing, nil
}

func fetchOne(ctx context.Context, c *api.Client, server string) (auditLog, error) {
	l := auditLog{server: server}
	stream, err := c.API().AuditLog(ctx, &api.AuditLogRequest{Server: server})
	if err != nil {
		return l, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return l, err
		}
		if m.GetHeadSeq() != 0 {
			l.head = audit.Head{Server: server, Seq: m.GetHeadSeq(), Hash: m.GetHeadHash()}
		}
		l.text = append(l.text, m.GetPiece()...)
	}
	l.text = l.text[:bytes.LastIndexByte(l.text, '\n')+1] // a line that was being written
	return l, nil
}

// verdict is what a verification found out about one log.
type verdict struct {
	Log     string `json:"log"` // server or file
	OK      bool   `json:"ok"`
	Entries int    `json:"entries"`
	Detail  string `json:"detail"`
}

func (a *app) auditVerifyCmd() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "verify [--file FILE...]",
		Short: "Check that no log was changed, cut off or rewritten",
		Long: `Reads the logs of all servers, or files, and checks of each that no entry was changed, removed or put in, that its end is there (FILE.head, beside it), and
that it holds what other servers have witnessed. Exit code 1 if one does not verify.`,
		Example: "  cellvisor audit verify\n  cellvisor audit verify --file /var/lib/cellvisor/audit.log",
		Args:    args(0, 0, ""),
		RunE: a.does(func(ctx context.Context, _ []string) error {
			var verdicts []verdict
			var err error
			if len(files) > 0 {
				verdicts = verifyFiles(files)
			} else if verdicts, err = a.verifyServers(ctx); err != nil {
				return err
			}
			if err := show(a, verdicts, func(v verdict) verdict { return v }, func(v verdict) string { return v.Log }, []column[verdict]{
				{"LOG", func(v verdict) string { return v.Log }, false},
				{"VERDICT", func(v verdict) string { return map[bool]string{true: "ok", false: "BROKEN"}[v.OK] }, false},
				{"ENTRIES", func(v verdict) string { return fmt.Sprint(v.Entries) }, false},
				{"DETAIL", func(v verdict) string { return v.Detail }, false},
			}); err != nil {
				return err
			}
			if slices.ContainsFunc(verdicts, func(v verdict) bool { return !v.OK }) {
				return exitStatus(api.ExitError)
			}
			return nil
		}),
	}
	cmd.Flags().StringArrayVar(&files, "file", nil, "verify this file instead of the servers' logs; may be repeated")
	return cmd
}

func verifyFiles(files []string) []verdict {
	var out []verdict
	reports := map[string]*audit.Report{}
	for _, f := range files {
		r, err := audit.VerifyFile(f)
		out = append(out, judge(f, r, err))
		if err == nil {
			reports[r.Head.Server] = r
		}
	}
	return crossCheck(out, reports)
}

func (a *app) verifyServers(ctx context.Context) ([]verdict, error) {
	c, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	logs, missing, err := fetchAudit(ctx, c, "")
	if err != nil {
		return nil, err
	}
	var out []verdict
	reports := map[string]*audit.Report{}
	for _, l := range logs {
		r, err := audit.Verify(bytes.NewReader(l.text), &l.head)
		out = append(out, judge(l.server, r, err))
		if err == nil {
			reports[l.server] = r
		}
	}
	for _, m := range missing {
		fmt.Fprintf(a.err, "cellvisor: %s\n", m)
	}
	return crossCheck(out, reports), nil
}

func judge(name string, r *audit.Report, err error) verdict {
	if err != nil {
		return verdict{Log: name, Detail: err.Error()}
	}
	return verdict{Log: name, OK: true, Entries: len(r.Entries)}
}

// crossCheck adds what the logs' servers witnessed of each other.
func crossCheck(out []verdict, reports map[string]*audit.Report) []verdict {
	wrong := audit.CrossCheck(reports)
	slices.Sort(wrong)
	for _, w := range wrong {
		out = append(out, verdict{Log: "(witnesses)", Detail: w})
	}
	return out
}
