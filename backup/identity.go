package backup

import (
	"fmt"
	"time"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// NewIdentity makes a hybrid post-quantum age identity. file is what age-keygen
// would write, to be kept by a custodian; recipient is the public half.
func NewIdentity(now time.Time) (file hsm.Secret, recipient string, err error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return hsm.Secret{}, "", fmt.Errorf("make an identity: %w", err)
	}
	recipient = id.Recipient().String()
	text := fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", now.UTC().Format(time.RFC3339), recipient, id.String())
	return hsm.NewSecret([]byte(text)), recipient, nil
}
