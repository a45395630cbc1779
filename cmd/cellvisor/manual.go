package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The command line's reference, made from the commands themselves: docs/cli.md, which a test keeps fresh, and man pages.

// manualCmd writes them; packagers and the Makefile run it.
func (a *app) manualCmd() *cobra.Command {
	var man, markdown string
	cmd := &cobra.Command{
		Use:    "manual",
		Short:  "Write man pages or the reference of the command line",
		Hidden: true,
		Args:   args(0, 0, ""),
		RunE: a.does(func(context.Context, []string) error {
			root := (&app{}).root()
			if markdown != "" {
				var b strings.Builder
				writeReference(&b, root)
				if err := os.WriteFile(markdown, []byte(b.String()), 0o644); err != nil {
					return err
				}
			}
			if man != "" {
				return writePages(man, root)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&man, "man", "", "directory for man pages")
	cmd.Flags().StringVar(&markdown, "markdown", "", "file for the reference")
	return cmd
}

// eachCommand calls f for every command that operators see, in the order of the help.
func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	f(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, f)
	}
}

// ownFlags lists a command's flags but help.
func ownFlags(c *cobra.Command) []*pflag.Flag {
	var out []*pflag.Flag
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" && (c.Parent() == nil || c.Parent().PersistentFlags().Lookup(f.Name) == nil) {
			out = append(out, f)
		}
	})
	return out
}

// flagWords is "-f, --follow" or "--from uint".
func flagWords(f *pflag.Flag) string {
	words := "--" + f.Name
	if f.Shorthand != "" {
		words = "-" + f.Shorthand + ", " + words
	}
	if kind, _ := pflag.UnquoteUsage(f); kind != "" {
		words += " " + kind
	}
	return words
}

func flagText(f *pflag.Flag) string {
	_, text := pflag.UnquoteUsage(f)
	if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" && !strings.Contains(text, "(default") {
		text += fmt.Sprintf(" (default %s)", d)
	}
	return text
}

func about(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}

// unindented takes the two spaces off that examples begin with.
func unindented(example string) string {
	lines := strings.Split(example, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}

const referenceHead = `# The command line

Made from the commands themselves: ` + "`make man`" + ` writes it anew, a test compares. Every command prints for people, or as ` + "`-o json`" + ` (fields:
[json.md](json.md)). Exit codes: 0 done, 1 error, 2 wrong usage, 3 blocked, 4 a deadline passed, 5 it goes on without being watched, 6 no quorum.
`

func writeReference(b *strings.Builder, root *cobra.Command) {
	b.WriteString(referenceHead)
	eachCommand(root, func(c *cobra.Command) {
		fmt.Fprintf(b, "\n## %s\n\n%s\n", c.CommandPath(), about(c))
		if c.Runnable() && !c.HasSubCommands() {
			fmt.Fprintf(b, "\n    %s\n", c.UseLine())
		}
		if flags := ownFlags(c); len(flags) > 0 {
			b.WriteString("\n| flag | |\n| --- | --- |\n")
			for _, f := range flags {
				fmt.Fprintf(b, "| `%s` | %s |\n", flagWords(f), strings.ReplaceAll(flagText(f), "|", "\\|"))
			}
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\n```sh\n%s\n```\n", unindented(c.Example))
		}
	})
}

// roff makes text harmless for troff.
func roff(text string) string {
	text = strings.ReplaceAll(text, `\`, `\e`)
	text = strings.ReplaceAll(text, "-", `\-`)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// writePage writes the page of a command in section 8.
func writePage(w io.Writer, c *cobra.Command) {
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	fmt.Fprintf(w, ".TH %s 8 \"\" \"Cellvisor %s\" \"Cellvisor\"\n", strings.ToUpper(roff(name)), roff(version))
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(name), roff(c.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(c.UseLine()))
	fmt.Fprintf(w, ".SH DESCRIPTION\n%s\n", strings.ReplaceAll(roff(about(c)), "\n\n", "\n.PP\n"))
	if flags := ownFlags(c); len(flags) > 0 {
		fmt.Fprintln(w, ".SH OPTIONS")
		for _, f := range flags {
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(flagWords(f)), roff(flagText(f)))
		}
	}
	if c.Example != "" {
		fmt.Fprintf(w, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(unindented(c.Example)))
	}
	fmt.Fprint(w, ".SH EXIT STATUS\n0 done, 1 error, 2 wrong usage, 3 blocked, 4 a deadline passed, 5 it goes on without being watched, 6 no quorum.\n")
	var also []string
	if c.HasParent() {
		also = append(also, c.Parent().CommandPath())
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			also = append(also, sub.CommandPath())
		}
	}
	slices.Sort(also)
	for i, path := range also {
		also[i] = ".BR " + roff(strings.ReplaceAll(path, " ", "-")) + " (8)"
	}
	if len(also) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n%s\n", strings.Join(also, " ,\n"))
	}
}

// writePages writes a page for every command.
func writePages(dir string, root *cobra.Command) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	eachCommand(root, func(c *cobra.Command) {
		var b strings.Builder
		writePage(&b, c)
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
		if werr := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644); werr != nil && err == nil {
			err = werr
		}
	})
	return err
}
