package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"chancery/internal/cli"
	"chancery/token"
	"chancery/token/pkcs11"
)

// infoView is a token as it describes itself.
type infoView struct {
	Label        string            `json:"label"`
	Serial       string            `json:"serial"`
	Manufacturer string            `json:"manufacturer"`
	Model        string            `json:"model"`
	Hardware     bool              `json:"hardware"`
	MaxSessions  int               `json:"max_sessions"`
	PIN          string            `json:"pin"`
	Algorithms   []token.Algorithm `json:"algorithms"`
}

func (a *app) tokenProbeCommand() *cobra.Command {
	var module string
	command := &cobra.Command{
		Use: "probe", Short: "List the tokens in a PKCS#11 module's slots",
		Long: "List the initialised tokens in a PKCS#11 module's slots: what 'token add' takes as --serial or --label. No PIN is needed and\nnothing is changed.",
		Args: cli.Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			infos, err := c.Tokens.list(module)
			if err != nil {
				return err
			}
			views, rows := []infoView{}, [][]string{}
			for _, info := range infos {
				v := viewInfo(info)
				views = append(views, v)
				rows = append(rows, []string{v.Serial, v.Label, v.Manufacturer, v.Model, "hardware: " + yesNo(v.Hardware), v.PIN, algorithmsText(v.Algorithms)})
			}
			return a.list(command, views, []string{"SERIAL", "LABEL", "MANUFACTURER", "MODEL", "PROTECTION", "PIN", "ALGORITHMS"}, rows)
		},
	}
	command.Flags().StringVar(&module, "module", "", "path of the PKCS#11 module")
	must(command.MarkFlagRequired("module"))
	return command
}

// list lists the tokens of a module, if that may be loaded.
func (c tokensConfig) list(module string) ([]token.Info, error) {
	path, err := filepath.Abs(module)
	if err != nil {
		return nil, err
	}
	if path, err = c.module(path); err != nil {
		return nil, err
	}
	return pkcs11.List(path)
}

func viewInfo(info token.Info) infoView {
	return infoView{
		Label: info.Label, Serial: info.Serial, Manufacturer: info.Manufacturer, Model: info.Model, Hardware: info.Hardware,
		MaxSessions: info.MaxSessions, PIN: pinText(info.PIN), Algorithms: append([]token.Algorithm{}, info.Algorithms...),
	}
}

func pinText(state token.PINState) string {
	switch {
	case state.Locked:
		return "locked"
	case state.FinalTry:
		return "final try"
	case state.CountLow:
		return "count low"
	}
	return "ok"
}

func algorithmsText(algorithms []token.Algorithm) string {
	return strings.Join(collect(algorithms, func(a token.Algorithm) string { return string(a) }), ",")
}
