package audit

import (
	"encoding/json"
	"strconv"
	"time"
)

// appendJSON appends what json.Marshal makes of the entry. Nearly every text in a log
// is of plain letters, and then it is written without reflection: an HSM writes an
// entry for every key it makes.
func (e *Entry) appendJSON(b []byte) ([]byte, error) {
	for _, s := range []string{e.Event, e.Role, e.Name, e.Key, e.Detail, e.Application, e.Result, e.Previous} {
		if !plain(s) {
			line, err := json.Marshal(e)
			return append(b, line...), err
		}
	}
	if y := e.Time.Year(); y < 1 || y > 9999 { // which RFC 3339 does not know
		line, err := json.Marshal(e)
		return append(b, line...), err
	}
	b = strconv.AppendUint(append(b, `{"sequence":`...), e.Sequence, 10)
	b = e.Time.AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano)
	b = strconv.AppendUint(append(b, `","reboot":`...), e.Reboot, 10)
	b = appendField(b, "event", e.Event)
	for _, f := range [...]struct{ name, value string }{
		{"role", e.Role}, {"name", e.Name}, {"key_reference", e.Key}, {"detail", e.Detail}, {"claimed_application", e.Application},
	} {
		if f.value != "" {
			b = appendField(b, f.name, f.value)
		}
	}
	b = appendField(appendField(b, "result", e.Result), "previous", e.Previous)
	return append(b, '}'), nil
}

// appendField appends a plain text.
func appendField(b []byte, name, value string) []byte {
	b = append(append(b, `,"`...), name...)
	b = append(append(b, `":"`...), value...)
	return append(b, '"')
}

// plain tells whether a text stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
