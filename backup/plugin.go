package backup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
)

// parseOtherRecipient reads recipients whose identities live in hardware: tagged
// ones (age1tag1…, age1tagpq1…), which age encrypts to by itself, and those of an
// age plugin (age1NAME1…), for which the program age-plugin-NAME must be in the
// PATH of whoever encrypts: of the HSM, for custodians.
func parseOtherRecipient(s string) (Recipient, error) {
	if strings.HasPrefix(s, "age1tag1") || strings.HasPrefix(s, "age1tagpq1") {
		return tag.ParseRecipient(s)
	}
	return plugin.NewRecipient(s, unattended)
}

// isPlugin tells an X25519 recipient, age1 and data, from age1NAME1 and data: the
// last 1 of bech32 ends its readable part.
func isPlugin(s string) bool { return strings.LastIndexByte(s, '1') > len("age") }

// postQuantum tells whether age counts the recipient as such; it does not mix
// them with others in one file. A plugin says so only when it encrypts.
func postQuantum(r Recipient) bool {
	switch r := r.(type) {
	case *age.HybridRecipient:
		return true
	case *tag.Recipient:
		return r.Hybrid()
	}
	return false
}

// unattended lets a plugin encrypt without anybody to ask: an HSM has no
// terminal.
var unattended = &plugin.ClientUI{
	DisplayMessage: func(string, string) error { return nil },
	RequestValue:   func(name, _ string, _ bool) (string, error) { return "", errNobody(name) },
	Confirm:        func(name, _, _, _ string) (bool, error) { return false, errNobody(name) },
}

func errNobody(name string) error {
	return fmt.Errorf("age-plugin-%s asks a question, and nobody is here to answer", name)
}

// attended asks the custodian at the terminal for a PIN or a touch.
var attended = plugin.NewTerminalUI(
	func(format string, v ...any) { fmt.Fprintf(os.Stderr, format+"\n", v...) },
	func(format string, v ...any) { fmt.Fprintf(os.Stderr, "warning: "+format+"\n", v...) },
)

// parsePluginIdentity reads AGE-PLUGIN-NAME-1…; the identity itself stays where
// the plugin keeps it.
func parsePluginIdentity(line string) (Identity, error) {
	id, err := plugin.NewIdentity(line, attended)
	if err != nil {
		return nil, errors.New("damaged")
	}
	return id, nil
}

// pluginHint says what to do about an age plugin that is not there.
func pluginHint(err error) string {
	var missing *plugin.NotFoundError
	if !errors.As(err, &missing) {
		return ""
	}
	return fmt.Sprintf("install age-plugin-%s in the PATH of the HSMs (to seal) and of whoever restores (to open)", missing.Name)
}
