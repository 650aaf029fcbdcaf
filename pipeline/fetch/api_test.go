// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// TestAPIHidesLibraries proves that a package that imports this one need not
// know the container libraries: no exported declaration mentions a type of
// theirs.
func TestAPIHidesLibraries(t *testing.T) {
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	must(t, err)
	checked := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		must(t, err)
		hidden := map[string]string{}
		for _, spec := range file.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			must(t, err)
			if !strings.HasPrefix(p, "go.podman.io/") && !strings.HasPrefix(p, "github.com/docker/") && !strings.HasPrefix(p, "github.com/sirupsen/") {
				continue
			}
			name := path.Base(p)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			hidden[name] = p
		}
		check := func(name string, n ast.Node) {
			checked++
			ast.Inspect(n, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if id, ok := s.X.(*ast.Ident); ok && hidden[id.Name] != "" {
						t.Errorf("%s: %s mentions %s.%s", files.Position(n.Pos()), name, hidden[id.Name], s.Sel.Name)
					}
				}
				return true
			})
		}
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) {
					check(d.Name.Name, d.Type)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					checkSpec(spec, check)
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d declarations were looked at", checked)
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// checkSpec looks at exported types with their exported and embedded fields,
// variables and constants.
func checkSpec(spec ast.Spec, check func(string, ast.Node)) {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			return
		}
		structure, ok := s.Type.(*ast.StructType)
		if !ok {
			check(s.Name.Name, s.Type)
			return
		}
		for _, field := range structure.Fields.List {
			if len(field.Names) == 0 || field.Names[0].IsExported() {
				check(s.Name.Name, field.Type)
			}
		}
	case *ast.ValueSpec:
		if s.Names[0].IsExported() {
			check(s.Names[0].Name, s)
		}
	}
}

func TestInstallLogging(t *testing.T) {
	std := logrus.StandardLogger()
	out, level, hooks := std.Out, std.Level, std.Hooks
	t.Cleanup(func() {
		std.SetOutput(out)
		std.SetLevel(level)
		std.ReplaceHooks(hooks)
	})
	var log bytes.Buffer
	InstallLogging(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo})))
	logrus.WithField("key", "value").Warn("a warning")
	logrus.Info("a detail")
	logrus.Debug("more detail")
	if got := log.String(); !strings.Contains(got, `level=WARN msg="a warning" key=value`) || strings.Contains(got, "detail") {
		t.Errorf("log %q", got)
	}
	if std.Out != io.Discard || std.IsLevelEnabled(logrus.DebugLevel) {
		t.Errorf("output %v, level %v", std.Out, std.Level)
	}
	log.Reset()
	InstallLogging(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	logrus.Debug("more detail")
	if n := strings.Count(log.String(), "more detail"); n != 1 {
		t.Errorf("%d lines: %q", n, log.String())
	}
	if !slog.New(slog.DiscardHandler).Enabled(context.Background(), slog.LevelError) {
		log.Reset()
		InstallLogging(slog.New(slog.DiscardHandler))
		logrus.Error("nothing")
		if log.Len() > 0 {
			t.Errorf("log %q", log.String())
		}
	}
}
