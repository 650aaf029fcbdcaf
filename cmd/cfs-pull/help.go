// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is the number of columns of help texts.
const helpWidth = 90

// flagGroup is options that belong together in a help text. The description of
// an option that takes a value begins with the value's name in backquotes.
type flagGroup struct {
	title string
	flags *pflag.FlagSet
}

// newFlagGroup returns a group whose options keep their order.
func newFlagGroup(title string) flagGroup {
	flags := pflag.NewFlagSet(title, pflag.ContinueOnError)
	flags.SortFlags = false
	return flagGroup{title, flags}
}

// setFlags gives a command its options and the help text that describes them.
func setFlags(cmd *cobra.Command, groups ...flagGroup) {
	for _, g := range groups {
		cmd.Flags().AddFlagSet(g.flags)
	}
	cmd.SetUsageFunc(func(cmd *cobra.Command) error { return writeUsage(cmd.OutOrStdout(), cmd, groups) })
}

func writeUsage(out io.Writer, cmd *cobra.Command, groups []flagGroup) error {
	var b strings.Builder
	fmt.Fprintf(&b, "USAGE\n    %s\n", cmd.UseLine())
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "    %s COMMAND\n\nCOMMANDS\n", cmd.CommandPath())
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() || c.Name() == "help" {
				fmt.Fprintf(&b, "    %-*s %s\n", cmd.NamePadding(), c.Name(), c.Short)
			}
		}
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nEXAMPLES\n%s\n", cmd.Example)
	}
	left := 0
	for _, g := range groups {
		g.flags.VisitAll(func(f *pflag.Flag) { left = max(left, len(flagSyntax(f))) })
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s\n", g.title)
		g.flags.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			syntax := flagSyntax(f)
			for _, line := range wrap(flagText(f), helpWidth-left-2) {
				fmt.Fprintf(&b, "%-*s  %s\n", left, syntax, line)
				syntax = ""
			}
		})
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// flagSyntax is how an option is written.
func flagSyntax(f *pflag.Flag) string {
	short := "    "
	if f.Shorthand != "" {
		short = "-" + f.Shorthand + ", "
	}
	syntax := "    " + short + "--" + f.Name
	if value, _ := pflag.UnquoteUsage(f); strings.HasPrefix(f.Usage, "`") {
		syntax += " " + value
	}
	return syntax
}

// flagText is what an option does, and its default.
func flagText(f *pflag.Flag) string {
	text := f.Usage
	if strings.HasPrefix(text, "`") {
		_, text, _ = strings.Cut(text[1:], "` ")
	}
	switch f.DefValue {
	case "", "0", "0s", "false":
		return text
	}
	return text + " (default " + f.DefValue + ")"
}

// wrap cuts a text into lines of at most width bytes, if its words allow that.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
