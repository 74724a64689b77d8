package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// Source says where a program's configuration comes from.
type Source struct {
	File      string   // given with --config; it must exist
	Search    []string // tried in order when File is empty; none need exist
	EnvPrefix string   // "CHANCERY_SERVER": overrides key a.b with CHANCERY_SERVER_A_B
}

// Load fills config, a pointer to a struct with `mapstructure` tags that holds
// the defaults, from the first file found and then from the environment. Unknown keys
// are refused. It returns the file used, or "" when there was none.
func Load(source Source, config any) (string, error) {
	v := viper.New()
	v.SetConfigType("toml")
	if err := setDefaults(v, config); err != nil {
		return "", err
	}
	v.SetEnvPrefix(source.EnvPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	v.AutomaticEnv()
	file, err := readFirst(v, source)
	if err != nil {
		return "", err
	}
	if err := v.UnmarshalExact(config); err != nil {
		return "", configError(file, err)
	}
	return file, nil
}

// setDefaults tells viper every key, without which neither the environment nor
// the check for unknown keys would work.
func setDefaults(v *viper.Viper, config any) error {
	defaults := make(map[string]any)
	if err := mapstructure.Decode(config, &defaults); err != nil {
		return fmt.Errorf("cli: defaults of %T: %w", config, err)
	}
	for key, value := range defaults {
		v.SetDefault(key, value)
	}
	return nil
}

func readFirst(v *viper.Viper, source Source) (string, error) {
	if source.File != "" {
		return source.File, readFile(v, source.File)
	}
	for _, file := range source.Search {
		err := readFile(v, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return file, err
	}
	return "", nil
}

func readFile(v *viper.Viper, file string) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &Error{Exit: ExitUsage, Code: "config_missing", Message: fmt.Sprintf("configuration file %q does not exist", file), Cause: err}
	}
	if err != nil {
		return configError(file, err)
	}
	defer f.Close()
	if err := v.ReadConfig(f); err != nil {
		return configError(file, err)
	}
	return nil
}

func configError(file string, err error) *Error {
	where := "the environment"
	if file != "" {
		where = file
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	return &Error{Exit: ExitUsage, Code: "config_invalid", Message: fmt.Sprintf("configuration in %s: %s", where, text), Cause: err}
}

// ConfigCommand returns `config show` and `config check`. load reads the
// configuration and returns it with the file it came from; check looks at what it names (files, addresses).
func ConfigCommand(load func() (config any, file string, err error), check func() error) *cobra.Command {
	parent := &cobra.Command{
		Use: "config", Short: "Show or check the configuration", Args: Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	parent.AddCommand(&cobra.Command{
		Use: "show", Short: "Print the configuration in force, as TOML",
		Args: Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			config, file, err := load()
			if err != nil {
				return err
			}
			return showConfig(command.OutOrStdout(), config, file)
		},
	}, &cobra.Command{
		Use: "check", Short: "Check the configuration and the files it names",
		Args: Args(cobra.NoArgs),
		RunE: func(command *cobra.Command, _ []string) error {
			_, file, err := load()
			if err != nil {
				return err
			}
			if err := check(); err != nil {
				return err
			}
			fmt.Fprintf(command.ErrOrStderr(), "%s: configuration is good (%s)\n", command.Root().Name(), orDefaults(file))
			return nil
		},
	})
	return parent
}

func showConfig(w io.Writer, config any, file string) error {
	values := make(map[string]any)
	if err := mapstructure.Decode(config, &values); err != nil {
		return err
	}
	durationsToText(values)
	text, err := toml.Marshal(values)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "# from %s\n%s", orDefaults(file), text)
	return err
}

func orDefaults(file string) string {
	if file == "" {
		return "the built-in defaults and the environment"
	}
	return file
}
