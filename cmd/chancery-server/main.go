// Command chancery-server is the signing server's daemon, which dials out to a
// bridge and listens nowhere, and the operators' tool for its users, tokens, keys
// and grants.
//
// Data goes to standard output. Everything else goes to standard error behind the
// program's name. Secrets come from files, systemd credentials, descriptors
// or prompts, never from arguments or the environment.
package main

import (
	"fmt"
	"os"

	"chancery/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	if err := hideMemory(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot keep secrets out of core dumps: %s [core_dumps]\n", program, err)
		return int(cli.ExitFailed)
	}
	return int(cli.Run(newRoot(), classify))
}
