package pkcs11

import (
	"context"
	"encoding/hex"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// maxFound bounds the objects of one search.
const maxFound = 1 << 20

// finding is a search under way: what it has found and not handed out.
type finding struct {
	handles []uint64
	found   int // that there is memory for
}

func (s *session) findInit(ctx context.Context, args rpc.Args) ([]any, error) {
	if s.find != nil && s.app.form != rpc.FormOld {
		return nil, ck.OperationActive
	}
	s.find = nil
	t, err := parseTemplate(args.Attributes(1))
	if err != nil {
		return nil, err
	}
	l, err := s.login()
	if err != nil {
		s.find = &finding{} // nothing is public before login
		return nil, nil
	}
	f := &finding{}
	filter, possible := filterOf(t)
	if !possible {
		s.find = f
		return nil, nil
	}
	for k, err := range l.Keys(ctx, filter) {
		if err != nil {
			return nil, err
		}
		if len(f.handles) == maxFound {
			return nil, ck.DeviceMemory
		}
		o := s.visible(k.KeyInfo)
		if o == nil {
			continue
		}
		ok, err := s.matches(ctx, l, k.KeyInfo, t)
		if err != nil {
			return nil, err
		}
		if ok {
			f.handles = append(f.handles, o.handle)
		}
	}
	f.found = cap(f.handles)
	s.find = f
	return nil, nil
}

// visible returns the object for a key that a list shows, nil for session keys of
// other applications that share the login.
func (s *session) visible(k hsm.KeyInfo) *object {
	if _, known := classes[k.Class]; !known {
		return nil
	}
	if !k.Token {
		o := s.app.objects.of(s.slot, k.Ref)
		if o != nil {
			o.learn(k)
		}
		return o
	}
	return s.app.objects.note(s.slot, k, nil, nil)
}

// filterOf lets the HSMs choose as far as they can; possible is false if no object
// can fit.
func filterOf(t template) (f hsm.Filter, possible bool) {
	f.Attrs = map[string]string{}
	if a, ok := t[ck.Class]; ok {
		for class, n := range classes {
			if n == a.Num {
				f.Attrs["class"] = string(class)
			}
		}
		if f.Attrs["class"] == "" {
			return f, false
		}
	}
	if a, ok := t[ck.Label]; ok && len(a.Bytes) > 0 {
		f.Attrs["label"] = string(a.Bytes)
	}
	if a, ok := t[ck.ID]; ok && len(a.Bytes) > 0 {
		f.Attrs["id"] = hex.EncodeToString(a.Bytes)
	}
	if len(f.Attrs["label"]) > hsm.MaxLabel || len(f.Attrs["id"]) > 2*hsm.MaxID {
		return f, false
	}
	return f, true
}

// matches compares an object with all of a template.
func (s *session) matches(ctx context.Context, l *login, k hsm.KeyInfo, t template) (bool, error) {
	for at, want := range t {
		got, ok := publicAttribute(k, at)
		if !ok && at == ck.Value && !k.Class.IsKey() {
			b, err := l.Use(ctx, hsm.Use{Kind: hsm.UseValue, Key: k.Ref})
			if err != nil {
				return false, err
			}
			got, ok = blob(b), true
		}
		if !ok && at == ck.PublicKeyInfo && attributeSet(k.Class, k.Type)[at] {
			b, err := l.Use(ctx, hsm.Use{Kind: hsm.UsePublic, Key: k.Ref})
			if err != nil {
				return false, err
			}
			got, ok = blob(b), true
		}
		if !ok || !sameValue(got, want) {
			return false, nil
		}
	}
	return true, nil
}

func (s *session) findObjects(_ context.Context, args rpc.Args) ([]any, error) {
	if s.find == nil {
		return nil, ck.OperationNotInitialized
	}
	n := min(len(s.find.handles), int(args.Room(1).N))
	out := s.find.handles[:n:n]
	s.find.handles = s.find.handles[n:]
	if out == nil {
		out = []uint64{}
	}
	return []any{out}, nil
}

func (s *session) findFinal(context.Context, rpc.Args) ([]any, error) {
	if s.find == nil {
		return nil, ck.OperationNotInitialized
	}
	s.find = nil
	return nil, nil
}
