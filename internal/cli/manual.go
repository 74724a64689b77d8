//go:build manpages

package cli

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// addManual gives a program that is built to make its manual a command for that: `man SECTION DIRECTORY`. What people run
// is built without it, and links none of what it takes.
func addManual(root *cobra.Command) {
	root.AddCommand(&cobra.Command{
		Use: "man SECTION DIRECTORY", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[1], 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true
			for _, command := range root.Commands() {
				command.Hidden = command.Hidden || command.Name() == "completion"
			}
			// Cobra writes the date of $SOURCE_DATE_EPOCH over this one, where that is set.
			now := time.Now()
			return doc.GenManTree(root, &doc.GenManHeader{
				Section: args[0], Source: "Chancery", Manual: "Chancery", Date: &now,
			}, filepath.Clean(args[1]))
		},
	})
}
