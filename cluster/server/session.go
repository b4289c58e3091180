package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"syscall"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// served is the HSM as callers from the network see it: the software HSM, what
// only the process knows of it, and no management without an audit log.
type served struct {
	hsm.Module
	server *Server
}

func (m served) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	if err := m.server.serves(); err != nil {
		return nil, hsm.Secret{}, err
	}
	s, ticket, err := m.Module.Login(ctx, role, name, password)
	return m.wrap(s, err), ticket, err
}

// LoginMFA implements hsm.MFA.
func (m served) LoginMFA(ctx context.Context, role hsm.Role, name string, password hsm.Secret, factor hsm.SecondFactor) (hsm.Session, hsm.Secret, error) {
	inner, able := m.Module.(hsm.MFA)
	if !able {
		return m.Login(ctx, role, name, password)
	}
	if err := m.server.serves(); err != nil {
		return nil, hsm.Secret{}, err
	}
	s, ticket, err := inner.LoginMFA(ctx, role, name, password, factor)
	return m.wrap(s, err), ticket, err
}

func (m served) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	if err := m.server.serves(); err != nil {
		return nil, err
	}
	s, err := m.Module.Redeem(ctx, ticket)
	return m.wrap(s, err), err
}

// Session starts in every state: whoever has no rights may still ask how the HSM
// is and who its members are.
func (m served) Session(ctx context.Context) (hsm.Session, error) {
	s, err := m.Module.Session(ctx)
	return m.wrap(s, err), err
}

func (m served) wrap(s hsm.Session, err error) hsm.Session {
	if err != nil {
		return nil
	}
	return servedSession{Session: s, server: m.server}
}

// servedSession refuses what the HSM does not do in its present state. Other HSMs
// may read and insert objects in every state, which is how one leaves the states
// in which it does not serve; what they ask of operations in doubt, an HSM that
// has not caught up must not answer.
type servedSession struct {
	hsm.Session
	server *Server
}

// Info adds what only the process knows.
func (s servedSession) Info(ctx context.Context) (hsm.Info, error) {
	info, err := s.Session.Info(ctx)
	if err != nil {
		return info, err
	}
	info.LastSync, info.Departure = s.server.sync.lastSync(), s.server.place.left.Load()
	info.OutOfTouch = s.server.sync.outOfTouch()
	// Both of one departure: who hears that it is LEAVING hears which one.
	if state, notice := s.server.stateOf(info.Departure); info.State == hsm.StateActive || !state.Serves() {
		info.State, info.Notice = state, notice
	}
	return info, nil
}

// FingerprintKeys is for those who compare what the HSM holds.
func (s servedSession) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	if err := s.reads(); err != nil {
		return hsm.FingerprintKeys{}, err
	}
	return s.Session.FingerprintKeys(ctx)
}

func (s servedSession) isHSM() bool { return s.Principal().Role == hsm.RoleHSM }

// reads refuses what reads objects.
func (s servedSession) reads() error {
	if s.isHSM() {
		return nil
	}
	return s.server.serves()
}

// changes refuses what adds or changes objects, and what could not be recorded.
// The caller calls done when that has ended.
func (s servedSession) changes() (done func(), err error) {
	if err := s.server.recordable(); err != nil {
		return nil, err
	}
	return s.server.takes()
}

func refuse[T any](err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		yield(none, err)
	}
}

func (s servedSession) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	done, err := s.changes()
	if err != nil {
		return hsm.Created{}, err
	}
	defer done()
	return s.Session.Create(ctx, op, r)
}

// Change lets members be changed on an HSM that leaves: that is how it stays. It also votes
// on tokens that it was made a voter of before, which nobody else can do in its place: a
// vote that goes down with it was given to nobody else, and is none.
func (s servedSession) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if c.Kind == hsm.ChangeRotate || c.Kind == hsm.ChangeMaskingKeys {
		return hsm.MaskedObject{}, s.changeMaskingKeys(ctx, c)
	}
	if c.Kind == hsm.ChangeMember || c.Kind == hsm.ChangeClaim {
		if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil {
			return hsm.MaskedObject{}, err
		}
		if c.Departure != 0 {
			return s.server.depart(ctx, s.Session, c)
		}
		return s.Session.Change(ctx, c)
	}
	done, err := s.changes()
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	m, err := s.Session.Change(ctx, c)
	done()                                        // before locate, which waits for it on an HSM that leaves
	if err == nil && c.Kind == hsm.ChangeRevoke { // whoever is told so can rely on it
		err = s.server.locate(context.WithoutCancel(ctx))
	}
	return m, err
}

func (s servedSession) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil {
		return nil, err
	}
	return s.Session.Envelope(ctx, custodians, threshold)
}

func (s servedSession) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	done, err := s.server.takes()
	if err != nil {
		return err
	}
	defer done()
	return s.Session.Prepare(ctx, op, lease, objects)
}

func (s servedSession) Commit(ctx context.Context, op hsm.OpID) error {
	done, err := s.server.takes()
	if err != nil {
		return err
	}
	defer done()
	return s.Session.Commit(ctx, op)
}

func (s servedSession) Abort(ctx context.Context, op hsm.OpID) error {
	if err := s.server.serves(); err != nil {
		return err
	}
	return s.Session.Abort(ctx, op)
}

func (s servedSession) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	if err := s.server.resolves(); err != nil {
		return hsm.OpUnknown, err
	}
	return s.Session.Resolve(ctx, op)
}

func (s servedSession) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	if err := s.server.serves(); err != nil {
		return nil, err
	}
	return s.Session.Use(ctx, u)
}

func (s servedSession) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil {
		return nil, err
	}
	return s.Session.Token(ctx, service, key)
}

func (s servedSession) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	if err := s.server.serves(); err != nil {
		return nil, err
	}
	return s.Session.Tokens(ctx)
}

func (s servedSession) DeleteTokens(ctx context.Context, all bool) (int, error) {
	if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil {
		return 0, err
	}
	return s.Session.DeleteTokens(ctx, all)
}

func (s servedSession) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	if err := s.server.serves(); err != nil {
		return refuse[hsm.KeyInfo](err)
	}
	return s.Session.Keys(ctx, f)
}

func (s servedSession) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	if err := s.server.serves(); err != nil {
		return hsm.KeyInfo{}, err
	}
	return s.Session.Key(ctx, ref)
}

func (s servedSession) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	if err := s.server.serves(); err != nil {
		return nil, err
	}
	return s.Session.Users(ctx)
}

func (s servedSession) Scoped(scope hsm.Scope) hsm.SketchReplica {
	return servedReplica{SketchReplica: s.Session.Scoped(scope), session: s}
}

func (s servedSession) lineage() servedReplica {
	return servedReplica{SketchReplica: s.Session, session: s}
}

func (s servedSession) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return s.lineage().Objects(ctx)
}

func (s servedSession) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return s.lineage().Extract(ctx, refs)
}

func (s servedSession) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	return s.lineage().Insert(ctx, objects)
}

func (s servedSession) Root(ctx context.Context) (hsm.Root, error) { return s.lineage().Root(ctx) }

func (s servedSession) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return s.lineage().Cells(ctx, from)
}

// servedReplica is one scope of a servedSession.
type servedReplica struct {
	hsm.SketchReplica
	session servedSession
}

func (r servedReplica) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	if err := r.session.reads(); err != nil {
		return refuse[hsm.Object](err)
	}
	return r.SketchReplica.Objects(ctx)
}

func (r servedReplica) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	if err := r.session.reads(); err != nil {
		return refuse[hsm.MaskedObject](err)
	}
	return r.SketchReplica.Extract(ctx, refs)
}

// Insert lets other HSMs in always; a copy from anybody else must not go where it
// might go down with the HSM.
func (r servedReplica) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	if r.session.isHSM() {
		return r.SketchReplica.Insert(ctx, objects)
	}
	done, err := r.session.server.takes()
	if err != nil {
		return hsm.Inserted{}, err
	}
	done()
	return r.insertInParts(ctx, objects)
}

// Bounds of what is inserted at once of a caller's sequence.
const (
	partObjects = 4096
	partBytes   = 8 << 20
)

// insertInParts reads some objects, and then inserts them: while it waits for the
// caller nothing is under way that a removal of this HSM would have to wait for.
func (r servedReplica) insertInParts(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (total hsm.Inserted, err error) {
	var part []hsm.MaskedObject
	size := 0
	flush := func() error {
		n, err := r.insertPart(ctx, part)
		total.Add(n)
		part, size = part[:0], 0
		return err
	}
	for m, err := range objects {
		if err != nil { // what came before it is good
			return total, errors.Join(err, flush())
		}
		part, size = append(part, m), size+len(m.Bytes)
		if len(part) == partObjects || size >= partBytes {
			if err := flush(); err != nil {
				return total, err
			}
		}
	}
	return total, flush()
}

// insertPart inserts some objects, if the HSM takes any at this moment.
func (r servedReplica) insertPart(ctx context.Context, part []hsm.MaskedObject) (hsm.Inserted, error) {
	done, err := r.session.server.takes()
	if err != nil {
		return hsm.Inserted{}, err
	}
	defer done()
	return r.SketchReplica.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range part {
			if !yield(m, nil) {
				return
			}
		}
	})
}

func (r servedReplica) Root(ctx context.Context) (hsm.Root, error) {
	if err := r.session.reads(); err != nil {
		return hsm.Root{}, err
	}
	return r.SketchReplica.Root(ctx)
}

func (r servedReplica) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	if err := r.session.reads(); err != nil {
		return refuse[hsm.Cell](err)
	}
	return r.SketchReplica.Cells(ctx, from)
}

// recordable refuses what cannot be recorded (see the package's documentation).
func (s *Server) recordable() error {
	err := s.device.audit.Ready()
	if err == nil {
		return nil
	}
	kind := hsm.ErrUnavailable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = hsm.ErrFull
	}
	return fmt.Errorf("%w: HSM %s cannot write its audit log and takes no changes; nothing was done: %w", kind, s.config.ID, err)
}
