package rpc

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"testing/iotest"
	"time"
)

// TestOthersGoOnWhileTheReaderAnswers: a connection whose reader answers requests
// itself is read on when one of them takes long, and each gets its answer; the peer
// ends it meanwhile, finalizes, or the server stops.
func TestOthersGoOnWhileTheReaderAnswers(t *testing.T) {
	for _, end := range []string{"close", "finalize", "stop"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t, 0)
			p := w.dial(t, 1, 1)
			p.initialize()
			app := <-w.apps
			session := binary.BigEndian.AppendUint64(nil, 7)
			for range 2 * aloneAfter {
				p.send(request(0x11, CloseSession, session))
				p.answer()
			}
			waiting := request(0x12, GenerateRandom, append(session, 0, 0, 0, 1))
			p.send(waiting)
			p.send(request(0x13, GetSlotList, make([]byte, 5)))
			if code, _, _ := p.answer(); code != 0x13 {
				t.Fatalf("code %x came first, want that of the call that does not wait", code)
			}
			p.send(waiting) // that its new reader does not answer itself
			p.send(request(0x14, GetSlotList, make([]byte, 5)))
			if code, _, _ := p.answer(); code != 0x14 {
				t.Fatalf("code %x came first, want that of the call that does not wait", code)
			}
			switch end {
			case "close":
				p.Close()
				close(app.hold)
			case "finalize":
				p.send(request(0x15, Finalize, nil))
				close(app.hold)
				for _, want := range []uint32{0x12, 0x12, 0x15} {
					if code, _, _ := p.answer(); code != want {
						t.Errorf("code %x, want %x", code, want)
					}
				}
			case "stop":
				w.stop()
				close(app.hold)
				for range 2 {
					if code, _, _ := p.answer(); code != 0x12 {
						t.Errorf("code %x, want 12", code)
					}
				}
			}
			if err := <-w.ended; err != nil {
				t.Errorf("the application ended: %v", err)
			}
			if n := app.closes(); n == 0 {
				t.Error("the application was not closed")
			}
		})
	}
}

// TestReaderAnswersWhereNobodyWaits: which requests the reader answers itself.
func TestReaderAnswersWhereNobodyWaits(t *testing.T) {
	c := &conn{}
	here := func(call Call, session uint64) bool { return c.here(call, Args{session}) }
	for range aloneAfter {
		if here(Sign, 7) {
			t.Fatal("before it is known whether other sessions ask")
		}
	}
	if !here(Sign, 7) || !here(Encrypt, 7) {
		t.Error("not for one session")
	}
	if here(Sign, 8) || here(Sign, 7) || !here(SignInit, 8) {
		t.Error("for two sessions")
	}
	c.lead.alone = -aloneAgain
	for range aloneAgain {
		if here(Sign, 8) {
			t.Fatal("soon after a request took long")
		}
	}
}

// TestWatchEndsWhenNothingHappens, and begins again.
func TestWatchEndsWhenNothingHappens(t *testing.T) {
	w := newWorld(t, 0)
	p := w.dial(t, 1, 1)
	p.initialize()
	for range 2 {
		p.send(request(0x11, GetSlotList, make([]byte, 5)))
		p.answer()
		for deadline := time.Now().Add(time.Minute); w.server.watching.Load() && time.Now().Before(deadline); {
			time.Sleep(look)
		}
		if w.server.watching.Load() {
			t.Fatal("it goes on")
		}
	}
}

// TestFramesAreTheirReaders: a frame stays as it was while the next ones are read,
// however they are cut and however large they are, and of a small one nothing is kept.
func TestFramesAreTheirReaders(t *testing.T) {
	var stream []byte
	var want [][]byte
	for i := range 60 {
		body := bytes.Repeat([]byte{byte(i + 1)}, []int{3, 900, smallFrame, smallFrame + 1, keptBytes - headerSize, 3 * keptBytes}[i%6])
		want = append(want, body)
		stream = binary.BigEndian.AppendUint32(stream, 1)
		stream = binary.BigEndian.AppendUint32(stream, 0)
		stream = append(binary.BigEndian.AppendUint32(stream, uint32(len(body))), body...)
	}
	for name, from := range map[string]io.Reader{"as they come": bytes.NewReader(stream), "halves": iotest.HalfReader(bytes.NewReader(stream)), "bytes": iotest.OneByteReader(bytes.NewReader(stream))} {
		f := frames{from: from}
		var got [][]byte
		for range want {
			one, err := f.next()
			if err != nil {
				t.Fatal(name, err)
			}
			got = append(got, one.body)
			if kept := len(f.buf); kept == 0 && len(one.body) <= smallFrame && bytes.Contains(f.kept, one.body) {
				t.Fatalf("%s: a frame of %d bytes was kept", name, len(one.body))
			}
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("%s: frame %d of %d bytes was written over", name, i, len(want[i]))
			}
		}
		if _, err := f.next(); err != io.EOF {
			t.Error(name, err)
		}
	}
}
