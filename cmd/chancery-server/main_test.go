package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"chancery/softhsm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		program: func() {
			// Away from the developer's terminal: only a script's own may be asked.
			_, _ = unix.Setsid()
			accessParameters = cheap
			os.Exit(run())
		},
		"enrol": enrol,
	})
}

// TestScripts runs the real program, one behaviour a script. Secrets stand in
// files named *.secret, and no output may contain what is in them.
func TestScripts(t *testing.T) {
	desk := newDesk(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPOSITORY", repository(t))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each program's end
			env.Setenv("CHANCERY_SERVER_STATE_DIRECTORY", filepath.Join(env.WorkDir, "state"))
			env.Setenv("GNUPGHOME", filepath.Join(env.WorkDir, "gnupg"))
			return desk.writeSecrets(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": server, "exits": exits, "await": await, "need": need,
			"desk": desk.install, "bridge": startBridge, "softhsm": newStore,
		},
	})
}

func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// server [CODE] ARGS runs chancery-server, which must end with the exit code (0), and looks for secrets in what it prints.
func server(ts *testscript.TestScript, _ bool, args []string) {
	code := "0"
	if _, err := strconv.Atoi(args[0]); err == nil {
		code, args = args[0], args[1:]
	}
	exits(ts, false, append([]string{code, program}, args...))
	for _, output := range []string{"stdout", "stderr"} {
		refuseSecrets(ts, output)
	}
}

func refuseSecrets(ts *testscript.TestScript, output string) {
	files, err := filepath.Glob(ts.MkAbs("*.secret"))
	ts.Check(err)
	for _, file := range files {
		secret, err := os.ReadFile(file)
		ts.Check(err)
		if strings.Contains(ts.ReadFile(output), strings.TrimSpace(string(secret))) {
			ts.Fatalf("%s shows the secret in %s", output, filepath.Base(file))
		}
	}
}

// exits CODE PROGRAM [ARGS] runs a program that must end with the exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits code program [arguments]")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		code = ended.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

// await FILE PATTERN [NAME] waits until the file matches, and puts the first group into $NAME.
func await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await file pattern [variable]")
	}
	pattern := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		content, err := os.ReadFile(ts.MkAbs(args[0]))
		if err != nil {
			continue
		}
		match := pattern.FindSubmatch(content)
		if match == nil {
			continue
		}
		if len(args) == 3 {
			ts.Setenv(args[2], string(match[1]))
		}
		return
	}
	content, _ := os.ReadFile(ts.MkAbs(args[0]))
	ts.Fatalf("nothing in %s matches %s:\n%s", args[0], args[1], content)
}

// need PROGRAM… ends the script where a program is missing, or fails it where CI is set.
func need(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		if _, err := exec.LookPath(name); err != nil {
			missing(ts, name)
		}
	}
}

func missing(ts *testscript.TestScript, what string) {
	if os.Getenv("CI") != "" {
		ts.Fatalf("%s is missing, and with CI set every tool must be there", what)
	}
	ts.Fatalf("%s is missing; ./bootstrap test installs it", what)
}

// newStore makes a SoftHSM store with two tokens of the PIN in pin.secret, and sets $SOFTHSM2_CONF,
// $MODULE, and $SERIAL of the first.
func newStore(ts *testscript.TestScript, _ bool, _ []string) {
	module, err := softhsm.FindModule()
	if err != nil {
		missing(ts, "SoftHSM")
	}
	ts.Check(os.MkdirAll(ts.MkAbs("hsm"), 0o700))
	ts.Check(os.WriteFile(ts.MkAbs("softhsm2.conf"), []byte("directories.tokendir = "+ts.MkAbs("hsm")+"\n"), 0o600))
	ts.Setenv("SOFTHSM2_CONF", ts.MkAbs("softhsm2.conf"))
	ts.Setenv("MODULE", module)
	pin := strings.TrimSpace(ts.ReadFile("pin.secret"))
	for _, label := range []string{"first", "second"} {
		ts.Check(ts.Exec("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "security officer"))
	}
	ts.Check(ts.Exec(program, "token", "probe", "--module", module))
	for _, line := range bytes.Split([]byte(ts.ReadFile("stdout")), []byte("\n")) {
		if fields := bytes.Fields(line); len(fields) > 1 && string(fields[1]) == "first" {
			ts.Setenv("SERIAL", string(fields[0]))
		}
	}
}
