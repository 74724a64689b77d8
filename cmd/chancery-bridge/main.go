// Command chancery-bridge pairs clients with signing servers and copies bytes
// between them. It authenticates both by mutual TLS and cannot read what they
// say: that is a TLS session of their own, and nothing here could parse it.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
)

const program = "chancery-bridge"

func main() { os.Exit(run()) }

func run() int {
	if err := cli.ForbidCoreDumps(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot keep the private key out of core dumps: %s [core_dumps]\n", program, err)
		return int(cli.ExitFailed)
	}
	return int(cli.Run(newRoot(), classify))
}

func newRoot() *cobra.Command {
	a := &app{}
	serve := a.serveCommand()
	root := &cobra.Command{
		Use:   program,
		Short: "Pair signing clients with signing servers",
		Long: "chancery-bridge pairs signing clients with signing servers and copies bytes between them, which it cannot read.\nWithout a command it serves.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 denied, 4 unreachable or busy, 5 token locked or absent.",
		Args: cli.Args(cobra.NoArgs),
		RunE: serve.RunE,
	}
	root.PersistentFlags().StringVar(&a.configFile, "config", "", "configuration file (default "+defaultConfigFile+")")
	root.PersistentFlags().Bool("json", false, "print results and errors as JSON")
	root.AddCommand(serve, a.configCommand(), cli.VersionCommand())
	return root
}
