// Command chancery signs files with keys that a Chancery server keeps. Files are
// hashed here and never travel; every signature is verified before it is written.
package main

import (
	"fmt"
	"os"

	"chancery/internal/cli"
)

const program = "chancery"

func main() { os.Exit(run()) }

func run() int {
	if err := cli.ForbidCoreDumps(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot keep passphrases out of core dumps: %s [core_dumps]\n", program, err)
		return int(cli.ExitFailed)
	}
	ctx, stop := cli.Interrupts()
	defer stop()
	root := newRoot()
	root.SetContext(ctx)
	return int(cli.Run(root, classify))
}
