package main

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/users"
)

func (a *app) keyCommand() *cobra.Command {
	return family("key", "Manage keys",
		a.keyCreateCommand(), a.keyAdoptCommand(), a.keyImportCommand(), a.keyCertifyCommand(),
		a.keyListCommand(), a.keyShowCommand(), a.keyExportCommand(),
		a.keyDisableCommand("disable", true), a.keyDisableCommand("enable", false), a.keyDeleteCommand())
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List keys",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				views, rows := []keyView{}, [][]string{}
				for i := range s.Keys() {
					v := viewKey(s, &s.Keys()[i])
					views = append(views, v)
					rows = append(rows, []string{
						v.Name, string(v.Algorithm), v.Token, "hardware: " + yesNo(v.Hardware), string(v.Origin),
						enabled(v.Disabled), fmt.Sprint(len(v.Grants)), strings.Join(v.kinds(), ","),
					})
				}
				return a.list(command, views, []string{"KEY", "ALGORITHM", "TOKEN", "PROTECTION", "ORIGIN", "STATE", "GRANTS", "CERTIFICATES"}, rows)
			})
		},
	}
}

func (a *app) keyShowCommand() *cobra.Command {
	var attest bool
	command := &cobra.Command{
		Use: "show NAME", Short: "Show a key, its certificates and grants",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(keyNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				k, err := findKey(s, args[0])
				if err != nil {
					return err
				}
				if attest {
					v, err := viewAttestation(k)
					if err != nil {
						return err
					}
					return a.show(command, v, v.fields())
				}
				v := viewKey(s, k)
				return a.show(command, v, keyFields(&v))
			})
		},
	}
	command.Flags().BoolVar(&attest, "attest", false, "show where the key lives, and what proves that: what its token said when the key was registered")
	return command
}

func keyFields(v *keyView) []field {
	fields := []field{
		{"key", v.Name}, {"algorithm", string(v.Algorithm)}, {"token", v.Token}, {"hardware", yesNo(v.Hardware)},
		{"origin", string(v.Origin)}, {"state", enabled(v.Disabled)}, {"handle", v.Handle},
		{"id on the token", v.TokenKeyID}, {"since", moment(v.CreatedAt)},
	}
	for _, c := range v.Certificates {
		fields = append(fields, field{"certificate", fmt.Sprintf("%s %q %s", c.Kind, c.Name, c.Fingerprint)})
	}
	for _, g := range v.Grants {
		fields = append(fields, field{"grant", g.sentence()})
	}
	return fields
}

// kinds lists the formats in which the key has certificates.
func (v *keyView) kinds() []string {
	kinds := []string{}
	for _, c := range v.Certificates {
		if kind := string(c.Kind); len(kinds) == 0 || kinds[len(kinds)-1] != kind {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

func (a *app) keyExportCommand() *cobra.Command {
	var format string
	command := &cobra.Command{
		Use: "export NAME", Short: "Print a key's public half or its certificates",
		Long: "Print a key's public half (pem: SubjectPublicKeyInfo) or its certificates (x509: PEM; openpgp: ASCII armour).",
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(keyNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withSnapshot(command, func(s *users.Snapshot) error {
				k, err := findKey(s, args[0])
				if err != nil {
					return err
				}
				text, err := exported(k, format)
				if err != nil {
					return err
				}
				if a.json {
					return a.result(command, map[string]string{"name": k.Name, "format": format, "content": text})
				}
				_, err = fmt.Fprint(command.OutOrStdout(), text)
				return err
			})
		},
	}
	command.Flags().StringVar(&format, "format", "pem", "pem, x509 or openpgp")
	completeWords(command, "format", "pem", string(users.CertificateX509), string(users.CertificateOpenPGP))
	return command
}

func exported(k *users.Key, format string) (string, error) {
	switch format {
	case "pem":
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.Public})), nil
	case string(users.CertificateX509), string(users.CertificateOpenPGP):
	default:
		return "", cli.Usage("--format %q: pem, x509 or openpgp", format)
	}
	var text strings.Builder
	for _, c := range k.Certificates {
		if string(c.Kind) == format {
			text.WriteString(strings.TrimRight(c.Armored, "\n") + "\n")
		}
	}
	if text.Len() == 0 {
		return "", &cli.Error{
			Exit: cli.ExitFailed, Code: "no_certificate", Message: fmt.Sprintf("key %q has no %s certificate", k.Name, format),
			Hint: fmt.Sprintf("make one with 'chancery-server key certify %s --%s …'", k.Name, format),
		}
	}
	return text.String(), nil
}

func (a *app) keyDisableCommand(verb string, disabled bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: map[bool]string{true: "Stop all signing with a key, keeping its grants", false: "Let a disabled key sign again"}[disabled],
		Args: cli.Args(cobra.ExactArgs(1)), ValidArgsFunction: a.namesOf(keyNames),
		RunE: func(command *cobra.Command, args []string) error {
			return a.withStore(command, func(ctx context.Context, store users.Store) error {
				disable := act{name: "key." + verb, key: args[0]}
				err := a.recorded(ctx, disable, func() error { return store.SetKeyDisabled(ctx, args[0], disabled) })
				if err != nil {
					return err
				}
				a.tell(command, "key %q is %s, from now on and in live sessions", args[0], enabled(disabled))
				return a.result(command, map[string]any{"name": args[0], "disabled": disabled})
			})
		},
	}
}

func findKey(s *users.Snapshot, name string) (*users.Key, error) {
	if k, ok := s.Key(name); ok {
		return k, nil
	}
	return nil, fmt.Errorf("key %q: %w", name, users.ErrNotFound)
}

func parseHex(flag, text string) ([]byte, error) {
	value, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil {
		return nil, cli.Usage("--%s %q is not hexadecimal", flag, text)
	}
	return value, nil
}
