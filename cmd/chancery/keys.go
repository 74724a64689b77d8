package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"chancery/client"
	"chancery/internal/cli"
)

// keyView is a key as --json shows it.
type keyView struct {
	Name         string            `json:"name"`
	Algorithm    string            `json:"algorithm"`
	Hardware     *bool             `json:"hardware"` // null: the server does not tell
	Handle       string            `json:"handle"`
	PublicKey    string            `json:"public_key"`
	Certificates []certificateView `json:"certificates"`
}

type certificateView struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Fingerprint string `json:"fingerprint"`
}

func viewOf(key *client.KeyInfo) keyView {
	view := keyView{
		Name: key.Name, Algorithm: string(key.Algorithm), Hardware: key.Hardware,
		Handle: key.Handle, PublicKey: key.PublicPEM, Certificates: []certificateView{},
	}
	for _, c := range key.Certificates {
		view.Certificates = append(view.Certificates, certificateView{c.Name, string(c.Type), c.Fingerprint})
	}
	return view
}

func (v keyView) hardware() string {
	switch {
	case v.Hardware == nil:
		return "unknown"
	case *v.Hardware:
		return "yes"
	}
	return "no"
}

func (v keyView) certificateTypes() string {
	var types []string
	for _, c := range v.Certificates {
		types = append(types, called(c.Type))
	}
	if len(types) == 0 {
		return "-"
	}
	return strings.Join(types, ",")
}

func (a *app) keysCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keys", Short: "List the keys that you may use",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			s, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer s.Close()
			keys, err := s.Keys(ctx)
			if err != nil {
				return err
			}
			return a.listKeys(keys)
		},
	}
}

func (a *app) listKeys(keys []client.KeyInfo) error {
	views := make([]keyView, len(keys))
	rows := make([][]string, len(keys))
	for i := range keys {
		v := viewOf(&keys[i])
		views[i] = v
		rows[i] = []string{printable(v.Name), called(v.Algorithm), v.hardware(), v.certificateTypes(), v.Handle}
	}
	if a.json {
		return cli.JSON(a.stdout, views)
	}
	if len(keys) == 0 {
		a.say("no key is granted to you; ask a manager of the key, and run '%s enroll' for them", program)
		return nil
	}
	return cli.Table(a.stdout, []string{"NAME", "ALGORITHM", "HARDWARE", "CERTIFICATES", "HANDLE"}, rows)
}

func (a *app) keyCommand() *cobra.Command {
	parent := &cobra.Command{Use: "key", Short: "Show or export one key", Args: subcommand, RunE: help}
	parent.AddCommand(a.keyShowCommand(), a.keyExportCommand())
	return parent
}

func (a *app) keyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show one key",
		Args:              cli.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeKeys,
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := a.context(command)
			defer cancel()
			key, err := a.askKey(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return cli.JSON(a.stdout, viewOf(key))
			}
			return a.showKey(viewOf(key))
		},
	}
}

// askKey connects and asks for one key.
func (a *app) askKey(ctx context.Context, name string) (*client.KeyInfo, error) {
	s, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.GetKey(ctx, name)
}

func (a *app) showKey(v keyView) error {
	lines := [][2]string{
		{"Name", printable(v.Name)}, {"Algorithm", called(v.Algorithm)},
		{"Hardware", v.hardware()}, {"Handle", v.Handle},
	}
	for _, c := range v.Certificates {
		lines = append(lines, [2]string{"Certificate", fmt.Sprintf("%s %s %s", called(c.Type), printable(c.Fingerprint), printable(c.Name))})
	}
	for _, line := range lines {
		if _, err := fmt.Fprintf(a.stdout, "%-12s %s\n", line[0]+":", line[1]); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s\n", strings.TrimSpace(v.PublicKey))
	return err
}
