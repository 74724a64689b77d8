package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/internal/scripttest"
	"chancery/softhsm"
)

func TestMain(m *testing.M) {
	scripttest.Main(m, program, func() int {
		accessParameters = cheap
		return run()
	}, map[string]func(){"enrol": enrol})
}

// TestScripts runs the real program, one behaviour a script. Secrets stand in
// files named *.secret, and no output may contain what is in them.
func TestScripts(t *testing.T) {
	desk := newDesk(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPOSITORY", scripttest.Repository(t))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each program's end
			env.Setenv("CHANCERY_SERVER_STATE_DIRECTORY", filepath.Join(env.WorkDir, "state"))
			env.Setenv("GNUPGHOME", filepath.Join(env.WorkDir, "gnupg"))
			return desk.writeSecrets(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": server, "exits": scripttest.Exits, "await": scripttest.Await, "need": need,
			"desk": desk.install, "bridge": startBridge, "softhsm": newStore,
		},
	})
}

// server [CODE] ARGS runs chancery-server, which must end with the exit code (0), and looks for secrets in what it prints.
func server(ts *testscript.TestScript, _ bool, args []string) {
	code := "0"
	if _, err := strconv.Atoi(args[0]); err == nil {
		code, args = args[0], args[1:]
	}
	scripttest.Exits(ts, false, append([]string{code, program}, args...))
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
