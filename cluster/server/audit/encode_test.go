package audit

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestAppendJSON: an entry is written as encoding/json writes it, whatever is in it.
func TestAppendJSON(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]*`), rapid.StringMatching(`[a-z 0-9]*`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	rapid.Check(t, func(t *rapid.T) {
		zone := time.FixedZone("", rapid.IntRange(-14*60, 14*60).Draw(t, "zone")*60)
		e := Entry{
			Sequence: rapid.Uint64().Draw(t, "sequence"), Reboot: rapid.Uint64().Draw(t, "reboot"),
			Time:  time.Unix(rapid.Int64Range(-1<<36, 1<<36).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds")).In(zone),
			Event: text.Draw(t, "event"), Role: text.Draw(t, "role"), Name: text.Draw(t, "name"), Key: text.Draw(t, "key"), Detail: text.Draw(t, "detail"),
			Application: text.Draw(t, "application"), Result: text.Draw(t, "result"), Previous: text.Draw(t, "previous"),
		}
		want, wantErr := json.Marshal(e)
		got, err := e.appendJSON([]byte("before"))
		if (err == nil) != (wantErr == nil) || wantErr == nil && string(got) != "before"+string(want) {
			t.Fatalf("got %s %v\nwant before%s %v", got, err, want, wantErr)
		}
	})
}
