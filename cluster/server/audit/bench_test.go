package audit

import (
	"encoding/json"
	"testing"
	"time"
)

// BenchmarkNote writes entries one by one and sixteen at a time; the line alone, and beside
// it encoding/json.
func BenchmarkNote(b *testing.B) {
	l, err := Open(b.TempDir()+"/audit.log", time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	e := Entry{Event: "commit", Role: "crypto-user", Name: "alice", Detail: "op 00112233445566778899aabbccddeeff"}
	b.Run("append", func(b *testing.B) {
		for b.Loop() {
			if err := l.Append(e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("note-16-flush", func(b *testing.B) {
		for b.Loop() {
			for range 16 {
				if err := l.Note(e); err != nil {
					b.Fatal(err)
				}
			}
			if err := l.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("line", func(b *testing.B) {
		line := []byte{}
		for b.Loop() {
			var err error
			if line, err = e.appendJSON(line[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("limit=json", func(b *testing.B) {
		for b.Loop() {
			if _, err := json.Marshal(e); err != nil {
				b.Fatal(err)
			}
		}
	})
}
