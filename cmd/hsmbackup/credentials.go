package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// login is a role, name and password, from the environment or a prompt.
type login struct {
	role     hsm.Role
	name     string
	password hsm.Secret
}

// side says which cluster a login is for, where there are two.
type side string

const (
	anySide side = ""
	srcSide side = "SRC_"
	dstSide side = "DST_"
)

// readLogin finds a login: HSMBACKUP_PIN (name:password) and HSMBACKUP_ROLE,
// with SRC_ or DST_ before PIN and ROLE for one of two clusters, falling back
// to the plain ones; or a prompt on a terminal. Without a role it is whatever
// the user has. ok is false if there is no login.
func (p *program) readLogin(s side) (l login, ok bool, err error) {
	pin, pinName := environ(s, "PIN")
	roleText, _ := environ(s, "ROLE")
	if roleText != "" {
		if l.role, err = hsm.ParseRole(roleText); err != nil {
			return l, false, err
		}
	}
	if pin == "" {
		return p.promptLogin(s, l.role)
	}
	l.name, l.password, err = parsePIN(pin, pinName)
	return l, err == nil, err
}

// environ reads HSMBACKUP_<side><name>, or HSMBACKUP_<name>.
func environ(s side, name string) (value, variable string) {
	if s != anySide {
		variable = "HSMBACKUP_" + string(s) + name
		if v := os.Getenv(variable); v != "" {
			return v, variable
		}
	}
	variable = "HSMBACKUP_" + name
	return os.Getenv(variable), variable
}

// parsePIN reads name:password. The error names the variable, never its value.
func parsePIN(pin, variable string) (string, hsm.Secret, error) {
	name, password, ok := bytes.Cut([]byte(pin), []byte(":"))
	if !ok || len(name) == 0 || len(password) == 0 {
		return "", hsm.Secret{}, usagef("%s: want NAME:PASSWORD", variable)
	}
	return string(name), hsm.NewSecret(password), nil
}

func (p *program) promptLogin(s side, role hsm.Role) (login, bool, error) {
	fd, ok := p.terminal()
	if !ok {
		return login{}, false, nil
	}
	where := map[side]string{anySide: "", srcSide: " at the source", dstSide: " at the destination"}[s]
	fmt.Fprintf(p.err, "user name%s: ", where)
	var name string
	if _, err := fmt.Fscanln(p.in, &name); err != nil {
		return login{}, false, usagef("no name was given")
	}
	password, err := p.promptSecret(fd, "password: ")
	return login{role: role, name: name, password: password}, err == nil, err
}

// promptSecret reads a line without showing it.
func (p *program) promptSecret(fd int, prompt string) (hsm.Secret, error) {
	fmt.Fprint(p.err, prompt)
	b, err := term.ReadPassword(fd)
	fmt.Fprintln(p.err)
	if err != nil || len(b) == 0 {
		return hsm.Secret{}, usagef("no password was given")
	}
	return hsm.NewSecret(b), nil
}

// terminal returns the descriptor of the input if a person sits at it.
func (p *program) terminal() (int, bool) {
	f, ok := p.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// newPassword reads the password of a user to be made or changed:
// HSMBACKUP_NEW_PASSWORD, or a prompt, twice.
func (p *program) newPassword(user string) (hsm.Secret, error) {
	if v := os.Getenv("HSMBACKUP_NEW_PASSWORD"); v != "" {
		return hsm.NewSecret([]byte(v)), nil
	}
	fd, ok := p.terminal()
	if !ok {
		return hsm.Secret{}, usagef("no password for %s: set HSMBACKUP_NEW_PASSWORD, or run on a terminal", user)
	}
	a, err := p.promptSecret(fd, "new password for "+user+": ")
	if err != nil {
		return a, err
	}
	b, err := p.promptSecret(fd, "once more: ")
	if err == nil && !a.Equal(b) {
		err = usagef("the two passwords differ")
	}
	return a, err
}
