package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// VersionCommand returns `version`: the module's version, the commit it was built from, and the toolchain.
func VersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version",
		Args: Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			v := buildVersion()
			if wantsJSON(command) {
				return JSON(command.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(command.OutOrStdout(), "%s %s (commit %s, %s, %s)\n",
				command.Root().Name(), v.Version, v.Commit, v.Go, v.Platform)
			return err
		},
	}
}

type version struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Built returns the module's version, the commit it was built from, and the toolchain.
func Built() (version, commit, toolchain string) {
	v := buildVersion()
	return v.Version, v.Commit, v.Go
}

func buildVersion() version {
	v := version{Version: "(devel)", Commit: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			v.Commit = setting.Value
		}
	}
	return v
}
