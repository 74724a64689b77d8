package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logging are the folders whose messages operators read.
var logging = []string{"cmd", "client", "seal", "signer", "token", "tunnel", "internal/certfile", "internal/notify", "internal/observe"}

// levels are the methods of a logger.
var levels = []string{"Debug", "Info", "Warn", "Error"}

// TestLogMessagesAreDocumented holds the tables of messages against the source, both ways.
func TestLogMessagesAreDocumented(t *testing.T) {
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:debug|info|warn|error)").FindAllStringSubmatch(observability(t), -1) {
		documented[row[1]] = true
	}
	logged := make(map[string]bool)
	for _, folder := range logging {
		for message, where := range messagesIn(t, filepath.Join("..", folder)) {
			logged[message] = true
			if !documented[message] {
				t.Errorf("%s logs %q, which docs/observability.md does not have", where, message)
			}
		}
	}
	for message := range documented {
		if !logged[message] {
			t.Errorf("docs/observability.md has the message %q, which nothing logs", message)
		}
	}
}

func observability(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("observability.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// messagesIn returns what the sources below a folder log in so many words, and where.
func messagesIn(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasSuffix(entry.Name(), "test") {
			return filepath.SkipDir // helpers of tests
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if message, ok := logCall(node); ok {
				found[message] = files.Position(node.Pos()).String()
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// logCall returns the message of a call like log.Info("message", …).
func logCall(node ast.Node) (message string, ok bool) {
	call, ok := node.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", false
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains(levels, method.Sel.Name) {
		return "", false
	}
	literal, ok := call.Args[0].(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	message, err := strconv.Unquote(literal.Value)
	return message, err == nil
}
