package server

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// served is the HSM as callers from the network see it: the software HSM, what
// only the process knows of it, and no management without an audit log.
type served struct {
	hsm.Module
	server *Server
}

func (m served) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	s, ticket, err := m.Module.Login(ctx, role, name, password)
	return m.wrap(s, err), ticket, err
}

func (m served) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	s, err := m.Module.Redeem(ctx, ticket)
	return m.wrap(s, err), err
}

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

type servedSession struct {
	hsm.Session
	server *Server
}

// Info adds when the HSM last synced with its peers, and that it cannot record
// what it does.
func (s servedSession) Info(ctx context.Context) (hsm.Info, error) {
	info, err := s.Session.Info(ctx)
	if err != nil {
		return info, err
	}
	info.LastSync = s.server.sync.lastSync()
	if s.server.recordable() != nil {
		info.State = "DEGRADED"
	}
	return info, nil
}

func (s servedSession) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	if err := s.server.recordable(); err != nil {
		return hsm.Created{}, err
	}
	return s.Session.Create(ctx, op, r)
}

func (s servedSession) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if err := s.server.recordable(); err != nil {
		return hsm.MaskedObject{}, err
	}
	return s.Session.Change(ctx, c)
}

func (s servedSession) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	if err := s.server.recordable(); err != nil {
		return nil, err
	}
	return s.Session.Envelope(ctx, custodians, threshold)
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
