// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const defaultLockTimeout = 90 * time.Second

// addVerityFlag adds --allow-missing-verity and its alias --insecure.
func addVerityFlag(f *pflag.FlagSet, to *bool, usage string) {
	f.BoolVar(to, "allow-missing-verity", false, usage)
	f.BoolVar(to, "insecure", false, usage)
	_ = f.MarkHidden("insecure") // it exists
}

// addLockTimeoutFlag adds --lock-timeout.
func addLockTimeoutFlag(f *pflag.FlagSet, to *time.Duration) {
	f.DurationVar(to, "lock-timeout", defaultLockTimeout, "`TIME` how long to wait for a lock, for instance 10s; 0 is not at all")
}

// waitTime is the value of an option that says how long to wait: a negative
// time is refused, and 0, which elsewhere stands for a default, is as short as
// it gets.
func waitTime(option string, d time.Duration) (time.Duration, error) {
	switch {
	case d < 0:
		return 0, usagef("%s %s: want no negative time", option, d)
	case d == 0:
		return -1, nil
	}
	return d, nil
}

// exclusive makes sure that at most one of some options was given.
func exclusive(f *pflag.FlagSet, names ...string) error {
	first := ""
	for _, name := range names {
		flag := f.Lookup(name)
		if !flag.Changed || flag.Value.Type() == "bool" && flag.Value.String() == "false" {
			continue
		}
		if first != "" {
			return usagef("--%s and --%s exclude each other", first, name)
		}
		first = name
	}
	return nil
}

// needs makes sure that an option was not given without another one.
func needs(f *pflag.FlagSet, name string, others ...string) error {
	if !f.Changed(name) {
		return nil
	}
	for _, other := range others {
		if f.Changed(other) {
			return nil
		}
	}
	return usagef("--%s needs --%s", name, strings.Join(others, " or --"))
}

// byteSize is a flag for a number of bytes with an optional unit.
type byteSize int64

var byteUnits = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1}, {"", 1},
}

// Set implements pflag.Value.
func (b *byteSize) Set(s string) error {
	for _, u := range byteUnits {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.factor {
			break
		}
		*b = byteSize(n * u.factor)
		return nil
	}
	return fmt.Errorf("%q is not a size: want a number with an optional K, M, G or T", s)
}

// Type implements pflag.Value.
func (*byteSize) Type() string { return "size" }

// String implements pflag.Value.
func (b *byteSize) String() string {
	if *b < 0 {
		return ""
	}
	return strings.Replace(formatBytes(int64(*b)), ".0 ", " ", 1)
}

// formatBytes writes a size in binary units.
func formatBytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if value < 1<<10 {
			break
		}
		value, unit = value/(1<<10), next
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// optionalBool is a flag that is true, false or absent.
type optionalBool struct{ value *bool }

// Set implements pflag.Value.
func (o *optionalBool) Set(s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return err
	}
	o.value = &v
	return nil
}

// Type implements pflag.Value.
func (*optionalBool) Type() string { return "bool" }

// String implements pflag.Value.
func (o *optionalBool) String() string {
	if o.value == nil {
		return ""
	}
	return strconv.FormatBool(*o.value)
}

// choice is a flag that is one of some words.
type choice[T any] struct {
	word  string
	value T
	words map[string]T
}

func newChoice[T any](word string, words map[string]T) choice[T] {
	return choice[T]{word: word, value: words[word], words: words}
}

// sameWords is for a choice of values that are the words.
func sameWords[T ~string](values ...T) map[string]T {
	words := map[string]T{}
	for _, v := range values {
		words[string(v)] = v
	}
	return words
}

// Set implements pflag.Value.
func (c *choice[T]) Set(s string) error {
	value, ok := c.words[s]
	if !ok {
		return fmt.Errorf("want one of %s", strings.Join(slices.Sorted(maps.Keys(c.words)), ", "))
	}
	c.word, c.value = s, value
	return nil
}

// Type implements pflag.Value.
func (*choice[T]) Type() string { return "word" }

// String implements pflag.Value.
func (c *choice[T]) String() string { return c.word }
