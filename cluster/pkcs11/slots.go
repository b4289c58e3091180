package pkcs11

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

const (
	manufacturer = "hsmbackup"
	model        = "hsmbackup"
)

var (
	cryptoki = rpc.Version{Major: 2, Minor: 40}
	library  = rpc.Version{Major: 1, Minor: 0}
)

// fixed pads text with spaces to n bytes, as PKCS #11's fields are, and cuts it where
// it is longer, between two characters.
func fixed(s string, n int) string {
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s + strings.Repeat(" ", n-len(s))
}

// serialOf is 16 hexadecimal digits of the cluster's id.
func serialOf(p *profile.Profile) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(p.ID)))
}

// init would make a cycle with App.Call.
var handlers map[rpc.Call]handler

func init() {
	handlers = map[rpc.Call]handler{
		rpc.GetInfo:          (*App).getInfo,
		rpc.GetSlotList:      (*App).getSlotList,
		rpc.GetSlotInfo:      (*App).getSlotInfo,
		rpc.GetTokenInfo:     (*App).getTokenInfo,
		rpc.GetMechanismList: (*App).getMechanismList,
		rpc.GetMechanismInfo: (*App).getMechanismInfo,
		rpc.OpenSession:      (*App).openSession,
		rpc.CloseSession:     (*App).closeSession,
		rpc.CloseAllSessions: (*App).closeAllSessions,
		rpc.WaitForSlotEvent: (*App).waitForSlotEvent,
	}
}

func (a *App) getInfo(context.Context, rpc.Args) ([]any, error) {
	return []any{cryptoki, fixed(manufacturer, 32), uint64(0), fixed("HSM clusters", 32), library}, nil
}

// numbers answers a list of numbers in the room there is.
func numbers(list []uint64, room rpc.Room) []any {
	if room.Query || !room.Fits(len(list)) {
		return []any{rpc.Size(len(list))}
	}
	return []any{list}
}

func (a *App) getSlotList(_ context.Context, args rpc.Args) ([]any, error) {
	list := make([]uint64, len(a.d.slots))
	for i, s := range a.d.slots {
		list[i] = s.id
	}
	return numbers(list, args.Room(1)), nil
}

func (a *App) slot(id uint64) (*slot, error) {
	if id >= uint64(len(a.d.slots)) {
		return nil, ck.SlotIDInvalid
	}
	return a.d.slots[id], nil
}

func (a *App) getSlotInfo(_ context.Context, args rpc.Args) ([]any, error) {
	s, err := a.slot(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	return []any{fixed("cluster "+s.Profile.Name+" "+s.Profile.Region, 64), fixed(manufacturer, 32), ck.SlotTokenPresent, library, library}, nil
}

func (a *App) getTokenInfo(_ context.Context, args rpc.Args) ([]any, error) {
	s, err := a.slot(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	all, rw := a.countSessions(s)
	flags := ck.TokenRNG | ck.TokenLoginRequired | ck.TokenPinInitialized | ck.TokenInitialized | ck.TokenDualCrypto
	longest, shortest := uint64(hsm.MaxUserName+1+hsm.MaxPassword), uint64(1+1+hsm.MinPassword)
	return []any{
		fixed(s.Profile.Name, 32), fixed(manufacturer, 32), fixed(model, 16), s.serial,
		flags, uint64(MaxSessions), all, uint64(MaxSessions), rw, longest, shortest,
		ck.Unavailable, ck.Unavailable, ck.Unavailable, ck.Unavailable, library, library,
		time.Now().UTC().Format("20060102150405") + "00",
	}, nil
}

func (a *App) getMechanismList(_ context.Context, args rpc.Args) ([]any, error) {
	if _, err := a.slot(args.Ulong(0)); err != nil {
		return nil, err
	}
	var list []uint64
	for m := range mechanisms {
		if a.form.Passes(m) {
			list = append(list, uint64(m))
		}
	}
	slices.Sort(list)
	return numbers(list, args.Room(1)), nil
}

func (a *App) getMechanismInfo(_ context.Context, args rpc.Args) ([]any, error) {
	if _, err := a.slot(args.Ulong(0)); err != nil {
		return nil, err
	}
	m, ok := mechanisms[ck.Mech(args.Ulong(1))]
	if !ok || args.Ulong(1) > uint64(ck.NoMechanism) {
		return nil, ck.MechanismInvalid
	}
	return []any{m.min, m.max, m.flags}, nil
}

// waitForSlotEvent: slots are what they are as long as the daemon runs.
func (a *App) waitForSlotEvent(_ context.Context, args rpc.Args) ([]any, error) {
	if args.Ulong(0)&ck.DontBlock != 0 {
		return nil, ck.NoEvent
	}
	return nil, ck.FunctionNotSupported
}
