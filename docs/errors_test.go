package docs_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"chancery/internal/cli"
	"chancery/tunnel/wire"
)

// programs are the folders of the programs, and what errors.md calls each.
var programs = map[string]string{
	"chancery":        "client",
	"chancery-server": "server",
	"chancery-bridge": "bridge",
}

var exitNames = map[string]cli.ExitCode{
	"ExitDone": cli.ExitDone, "ExitFailed": cli.ExitFailed, "ExitUsage": cli.ExitUsage,
	"ExitDenied": cli.ExitDenied, "ExitUnreachable": cli.ExitUnreachable, "ExitToken": cli.ExitToken,
}

// codes says with which exit codes each program ends for each code.
type codes map[string]map[string][]cli.ExitCode

func (c codes) add(code string, exit cli.ExitCode, programs ...string) {
	if c[code] == nil {
		c[code] = make(map[string][]cli.ExitCode)
	}
	for _, program := range programs {
		if !slices.Contains(c[code][program], exit) {
			c[code][program] = append(c[code][program], exit)
		}
	}
}

// sources returns the parsed files of a folder, its tests left out.
func sources(t *testing.T, folder string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", folder, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no source in %s: %v", folder, err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// constants returns the exported codes of a package by the names that other packages use for them.
func constants(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, file := range sources(t, folder) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if ok && len(spec.Values) == 1 && strings.HasPrefix(spec.Names[0].Name, "Code") {
				if value, ok := text(spec.Values[0]); ok {
					found[filepath.Base(folder)+"."+spec.Names[0].Name] = value
				}
			}
			return true
		})
	}
	return found
}

// sourceCodes collects every code that a program can end with.
func sourceCodes(t *testing.T) codes {
	t.Helper()
	found := make(codes)
	named := constants(t, "tunnel/wire")
	if len(named) != len(wire.Codes()) {
		t.Errorf("package wire has %d constants and lists %d codes", len(named), len(wire.Codes()))
	}
	own := constants(t, "client")
	maps.Copy(named, own)
	folders, err := os.ReadDir("../cmd")
	if err != nil {
		t.Fatal(err)
	}
	exits := make(map[string]cli.ExitCode)
	for _, folder := range folders {
		program, ok := programs[folder.Name()]
		if !ok {
			t.Fatalf("errors.md does not know the program %s", folder.Name())
		}
		r := &reader{t: t, found: found, named: named, exits: exits, programs: []string{program}}
		r.read("cmd/" + folder.Name())
	}
	everybody := slices.Collect(maps.Values(programs))
	(&reader{t: t, found: found, named: named, exits: exits, programs: everybody}).read("internal/cli")
	(&reader{t: t, found: found, named: named, exits: exits, programs: []string{"server", "bridge"}}).read("internal/listen")
	for _, code := range wire.Codes() {
		found.add(string(code), cli.ExitCode(code.Exit()), "client")
	}
	for name, code := range own {
		exit, ok := exits[name]
		if !ok {
			exit = cli.ExitFailed
		}
		found.add(code, exit, "client")
	}
	return found
}

// reader finds the codes that stand in the source of one program.
type reader struct {
	t        *testing.T
	found    codes
	named    map[string]string       // value of each named code
	exits    map[string]cli.ExitCode // exit codes of named codes, as a map literal of the source has them
	programs []string
}

func (r *reader) read(folder string) {
	for _, file := range sources(r.t, folder) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				r.literal(n)
			case *ast.CallExpr:
				r.failed(n)
			case *ast.KeyValueExpr:
				if exit, ok := exitCode(n.Value); ok && r.named[name(n.Key)] != "" {
					r.exits[name(n.Key)] = exit
				}
			case *ast.FuncDecl:
				r.assigned(n)
				r.printed(n)
			}
			return true
		})
	}
}

// literal reads a cli.Error, or a row of a table in which a code follows its exit code.
func (r *reader) literal(n *ast.CompositeLit) {
	exit, code := field(n, "Exit"), field(n, "Code")
	for i := range n.Elts[:max(0, len(n.Elts)-1)] {
		if _, ok := exitCode(n.Elts[i]); ok && exit == nil {
			exit, code = n.Elts[i], n.Elts[i+1]
		}
	}
	value, known := r.code(code)
	if !known {
		return // a variable, whose value is found where it is made
	}
	if number, ok := exitCode(exit); ok {
		r.found.add(value, number, r.programs...)
	} else {
		r.t.Errorf("the exit code of %q cannot be read from the source", value)
	}
}

// failed reads a call of cli.Failed.
func (r *reader) failed(n *ast.CallExpr) {
	if called := name(n.Fun); called == "cli.Failed" || called == "Failed" {
		if value, ok := r.code(n.Args[0]); ok {
			r.found.add(value, cli.ExitFailed, r.programs...)
		} else {
			r.t.Error("a call of cli.Failed has a code that is no literal")
		}
	}
}

// assigned reads codes that are given to an error made before in the same function.
func (r *reader) assigned(function *ast.FuncDecl) {
	exits := make(map[string]cli.ExitCode)
	ast.Inspect(function, func(n ast.Node) bool {
		assign, ok := n.(*ast.AssignStmt)
		if !ok || len(assign.Lhs) != len(assign.Rhs) {
			return true
		}
		for i, left := range assign.Lhs {
			if exit, ok := exitOfMade(assign.Rhs[i]); ok {
				exits[name(left)] = exit
			}
			variable, isCode := strings.CutSuffix(name(left), ".Code")
			if value, ok := r.code(assign.Rhs[i]); ok && isCode {
				r.found.add(value, exits[variable], r.programs...)
			}
		}
		return true
	})
}

// exitOfMade returns the exit code of an error that an expression makes.
func exitOfMade(e ast.Expr) (cli.ExitCode, bool) {
	if address, ok := e.(*ast.UnaryExpr); ok {
		e = address.X
	}
	switch e := e.(type) {
	case *ast.CompositeLit:
		return exitCode(field(e, "Exit"))
	case *ast.CallExpr:
		exit, ok := map[string]cli.ExitCode{"cli.Usage": cli.ExitUsage, "cli.Failed": cli.ExitFailed}[name(e.Fun)]
		return exit, ok
	}
	return 0, false
}

var printedCode = regexp.MustCompile(`\[([a-z_]+)\]\n$`)

// printed reads what a main prints by itself, before there is a command.
func (r *reader) printed(function *ast.FuncDecl) {
	var exits []cli.ExitCode
	code := ""
	ast.Inspect(function, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		if exit, ok := exitCode(e); ok && !slices.Contains(exits, exit) {
			exits = append(exits, exit)
		}
		if value, ok := text(e); ok {
			if match := printedCode.FindStringSubmatch(value); match != nil {
				code = match[1]
			}
		}
		return true
	})
	if code != "" && len(exits) == 1 {
		r.found.add(code, exits[0], r.programs...)
	} else if code != "" {
		r.t.Errorf("the exit code of %q cannot be read from the source", code)
	}
}

// code returns the value of a literal or named code.
func (r *reader) code(e ast.Expr) (string, bool) {
	if conversion, ok := e.(*ast.CallExpr); ok && len(conversion.Args) == 1 && name(conversion.Fun) == "string" {
		e = conversion.Args[0]
	}
	if value, ok := r.named[name(e)]; ok {
		return value, true
	}
	return text(e)
}

// field returns a named field's value, whether the field is exported or not.
func field(n *ast.CompositeLit, key string) ast.Expr {
	for _, element := range n.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok && strings.EqualFold(name(pair.Key), key) {
			return pair.Value
		}
	}
	return nil
}

func text(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(literal.Value)
	return value, err == nil
}

// name returns an identifier, with its package or variable before it if it has one.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return name(e.X) + "." + e.Sel.Name
	}
	return ""
}

func exitCode(e ast.Expr) (cli.ExitCode, bool) {
	exit, ok := exitNames[strings.TrimPrefix(name(e), "cli.")]
	return exit, ok
}

// row is one line of errors.md about a code.
type row struct{ code, meaning, remedy, retry, exit, programs string }

func errorsDocument(t *testing.T) string {
	t.Helper()
	document, err := os.ReadFile("errors.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// rows returns the document's lines about codes by their code.
func rows(t *testing.T, document string) map[string]row {
	t.Helper()
	found := make(map[string]row)
	for line := range strings.Lines(document) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 6 {
			t.Errorf("%d cells in %s", len(cells), line)
			continue
		}
		for i := range cells {
			if cells[i] = strings.TrimSpace(cells[i]); cells[i] == "" {
				t.Errorf("an empty cell in %s", line)
			}
		}
		r := row{strings.Trim(cells[0], "`"), cells[1], cells[2], cells[3], cells[4], cells[5]}
		if _, twice := found[r.code]; twice {
			t.Errorf("%s has two rows", r.code)
		}
		found[r.code] = r
	}
	return found
}

// exits reads a cell such as "1", or "1 or 3" in ascending order, for each of the row's programs.
func (r row) exits() (map[string][]cli.ExitCode, error) {
	members := strings.Split(r.programs, ", ")
	if r.programs == "all" {
		members = slices.Collect(maps.Values(programs))
	}
	var numbers []cli.ExitCode
	for text := range strings.SplitSeq(r.exit, " or ") {
		number, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("exit code %q cannot be read", r.exit)
		}
		numbers = append(numbers, cli.ExitCode(number))
	}
	exits := make(map[string][]cli.ExitCode)
	for _, program := range members {
		exits[program] = numbers
	}
	return exits, nil
}

func TestEveryCodeIsExplained(t *testing.T) {
	explained := rows(t, errorsDocument(t))
	for code, used := range sourceCodes(t) {
		r, ok := explained[code]
		if !ok {
			t.Errorf("errors.md lacks %s: %v", code, used)
			continue
		}
		delete(explained, code)
		exits, err := r.exits()
		if err != nil {
			t.Errorf("%s: %v", code, err)
			continue
		}
		for program, actual := range used {
			slices.Sort(actual)
			if stated, ok := exits[program]; !ok || !slices.Equal(actual, stated) {
				t.Errorf("%s: the %s ends with %v, and errors.md says %q for %q", code, program, actual, r.exit, r.programs)
			}
			delete(exits, program)
		}
		for program := range exits {
			t.Errorf("%s: errors.md names the %s, whose source does not have it", code, program)
		}
	}
	for code := range explained {
		t.Errorf("errors.md explains %s, which the source does not have", code)
	}
}

func TestRetries(t *testing.T) {
	kinds := []string{string(wire.RetryNo), string(wire.RetryLater), string(wire.RetryUnlock), string(wire.RetryReconnect)}
	explained := rows(t, errorsDocument(t))
	for code, r := range explained {
		if !slices.Contains(kinds, r.retry) {
			t.Errorf("%s: retry %q is none of %q", code, r.retry, kinds)
		}
	}
	for _, code := range wire.Codes() {
		if stated := explained[string(code)].retry; stated != string(code.Retry()) {
			t.Errorf("%s: the server advises %q, and errors.md says %q", code, code.Retry(), stated)
		}
	}
}

func TestExitCodesAreExplained(t *testing.T) {
	document := errorsDocument(t)
	for constant, exit := range exitNames {
		if !strings.Contains(document, fmt.Sprintf("\n| %d | ", exit)) {
			t.Errorf("errors.md does not explain exit code %d (%s)", exit, constant)
		}
	}
}

// TestErrorExamples: what errors.md shows in JSON is what the programs write.
func TestErrorExamples(t *testing.T) {
	explained := rows(t, errorsDocument(t))
	shown := 0
	for _, e := range examples(t, errorsDocument(t)) {
		if e.language != "json" {
			continue
		}
		shown++
		if strings.Contains(e.text, `"response"`) {
			response, err := wire.DecodeResponse([]byte(e.text))
			if err != nil {
				t.Errorf("%s: %v", e.text, err)
			} else if again := string(wire.AppendResponse(nil, response, e.extended())); again != e.text {
				t.Errorf("%s\nis encoded as\n%s", e.text, again)
			}
			continue
		}
		var told map[string]string
		if err := json.Unmarshal([]byte(e.text), &told); err != nil || explained[told["code"]].code == "" {
			t.Errorf("%s: %v", e.text, err)
		}
		if names := slices.Sorted(maps.Keys(told)); !slices.Equal(names, []string{"code", "hint", "message"}) {
			t.Errorf("%s has the fields %q", e.text, names)
		}
	}
	if shown < 3 {
		t.Errorf("only %d examples found", shown)
	}
}
