package backup

import "filippo.io/age/agessh"

func parseSSHRecipient(s string) (Recipient, error) { return agessh.ParseRecipient(s) }

func parseSSHIdentity(pem []byte) (Identity, error) { return agessh.ParseIdentity(pem) }
