package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// secondFactor answers the challenges of logins: with the key of --mfa, or by asking
// whoever sits at the terminal; nil if there is neither.
func (p *program) secondFactor(pr *profile.Profile, user string) (hsm.SecondFactor, error) {
	answer := p.askSignature
	if p.mfa != "" && p.mfa != "-" {
		key, err := readPrivateKey(p.mfa)
		if err != nil {
			return nil, err
		}
		answer = func(challenge []byte) ([]byte, error) { return hsm.SignWith(key, challenge) }
	} else if _, person := p.terminal(); p.mfa == "" && !person {
		return nil, nil
	}
	return func(_ context.Context, challenge []byte) ([]byte, error) {
		c, err := hsm.ParseLoginChallenge(challenge)
		if err != nil {
			return nil, fmt.Errorf("an HSM asks for a signature: %w", err)
		}
		if c.Lineage != pr.Lineage || c.Cluster != pr.ID || !strings.EqualFold(c.User, user) {
			return nil, fmt.Errorf("%w: an HSM asks for a signature for another login, of %q at %s; nothing was signed", hsm.ErrLogin, c.User, c.Cluster)
		}
		return answer(challenge)
	}, nil
}

// askSignature shows a challenge and reads the answer, both in base64.
func (p *program) askSignature(challenge []byte) ([]byte, error) {
	fmt.Fprintf(p.err, "sign the challenge with your key, such as with openssl dgst -sha256 -sign KEY, and answer in base64:\n%s\nanswer: ", base64.StdEncoding.EncodeToString(challenge))
	line, err := bufio.NewReader(p.in).ReadString('\n')
	answer, bad := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
	if len(answer) == 0 || bad != nil {
		return nil, usagef("the challenge was not answered: want a signature in base64 (%v)", firstOf(err, bad))
	}
	return answer, nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
