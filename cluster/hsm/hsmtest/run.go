package hsmtest

import (
	"context"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Config says what HSM the suite wants.
type Config struct {
	ID      hsm.HSMID
	Cluster hsm.ClusterID
	Keyring *hsm.Keyring
	CA      hsm.Secret
	// Now is the HSM's wall clock.
	Now func() time.Time
	// Iterations of PBKDF2, few, so that logins are fast.
	Iterations int
	// Seal is what the HSM seals recovery envelopes with.
	Seal func(ctx context.Context, secret hsm.Secret, custodians []string, threshold int) ([]byte, error)
}

// Modules sees one HSM as a caller whose certificate says p: RoleNone (any
// client), RoleAppliance or RoleHSM.
type Modules func(p hsm.Principal) hsm.Module

// Open opens a fresh, empty HSM and closes it when the test ends.
type Open func(t *testing.T, c Config) Modules

// Run runs the suite. Each test opens HSMs of its own.
func Run(t *testing.T, open Open) {
	for _, part := range []struct {
		name string
		run  func(*world)
	}{
		{"Bootstrap", testBootstrap},
		{"Login", testLogin},
		{"LoginCounts", testLockout},
		{"LockoutOfTheCluster", testLockoutCluster},
		{"Tickets", testTickets},
		{"UserNames", testUserNames},
		{"UserPasswords", testUserPasswords},
		{"UserDeletion", testUserDeletion},
		{"UserRecreation", testUserRecreation},
		{"Rights", testRights},
		{"Generate", testGenerate},
		{"GenerateRefuses", testGenerateRefuses},
		{"Import", testImport},
		{"WrapUnwrap", testWrapUnwrap},
		{"WrapRefuses", testWrapRefuses},
		{"Derive", testDerive},
		{"Attributes", testAttributes},
		{"AttributesOnUse", testAttributesOnUse},
		{"Destroy", testDestroy},
		{"Share", testShare},
		{"Use", testUse},
		{"UseRefuses", testUseRefuses},
		{"Things", testThings},
		{"Value", testValue},
		{"Copy", testCopy},
		{"SessionKeys", testSessionKeys},
		{"Promote", testPromote},
		{"Filters", testFilters},
		{"ProvisionalCommit", testProvisionalCommit},
		{"ProvisionalAbort", testProvisionalAbort},
		{"ProvisionalLease", testProvisionalLease},
		{"ProvisionalElsewhere", testProvisionalElsewhere},
		{"ProvisionalRefuses", testProvisionalRefuses},
		{"InsertMerges", testInsertMerges},
		{"InsertRefuses", testInsertRefuses},
		{"InsertConflicts", testInsertConflicts},
		{"InsertTombstones", testInsertTombstones},
		{"Revive", testRevive},
		{"Supersede", testSupersede}, {"KeepCopy", testKeepCopy}, {"SupersedeRights", testSupersedeRights}, {"SupersedeTrusted", testSupersedeTrusted}, {"KeptTrusted", testKeptTrusted},
		{"InsertMasked", testInsertMasked},
		{"OwnKeysOnly", testOwnKeysOnly},
		{"ClusterScope", testClusterScope},
		{"Sketch", testSketch},
		{"Settings", testSettings},
		{"Members", testMembers},
		{"WrapTemplate", testWrapTemplate}, {"UnwrapTemplate", testUnwrapTemplate}, {"DeriveTemplate", testDeriveTemplate},
		{"PostQuantumMoves", testPostQuantumMoves},
		{"QuorumUsers", testQuorumUsers}, {"QuorumTokens", testQuorumTokens}, {"QuorumTokenList", testQuorumTokenList}, {"QuorumTokenDelete", testQuorumTokenDelete}, {"QuorumTimeouts", testQuorumTimeouts}, {"QuorumValues", testQuorumValues}, {"QuorumCluster", testQuorumCluster},
		{"QuorumKeys", testQuorumKeys}, {"SignerRegistration", testSignerRegistration}, {"MFA", testMFA},
		{"Envelope", testEnvelope},
		{"Sign", testSign},
		{"Info", testInfo},
		{"Canceled", testCanceled},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(newWorld(t, open))
		})
	}
}
