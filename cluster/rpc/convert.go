package rpc

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// Conversion of replies and of what both directions share. to… makes the wire
// form, from… checks it and makes the contract's.

func toMasked(m hsm.MaskedObject) *pb.Masked {
	return &pb.Masked{
		Ref: uint64(m.Ref), Kind: uint32(m.Kind), Tombstone: m.Tombstone,
		Digest: m.Digest[:], Lineage: m.Lineage[:], Bytes: m.Bytes,
	}
}

func fromMasked(p *pb.Masked) (hsm.MaskedObject, error) {
	c := &checker{}
	m := hsm.MaskedObject{
		Object: hsm.Object{
			Ref: c.ref(p.GetRef()), Kind: hsm.Kind(p.GetKind()), Tombstone: p.GetTombstone(),
			Digest: fixed[hsm.Digest](c, "digest", p.GetDigest()),
		},
		Lineage: fixed[hsm.Lineage](c, "lineage", p.GetLineage()), Bytes: p.GetBytes(),
	}
	if p.GetKind() > 127 {
		c.fail("kind %d does not exist", p.GetKind())
	}
	if n := len(m.Bytes); n == 0 || n > maxMasked {
		c.fail("masked object of %d bytes: want 1 to %d", n, maxMasked)
	}
	return m, c.err
}

// fromChanged is fromMasked, but lets nothing pass: a change to a session key
// has no masked object to show.
func fromChanged(p *pb.Masked) (hsm.MaskedObject, error) {
	if p.GetRef() == 0 && len(p.GetBytes()) == 0 {
		return hsm.MaskedObject{}, nil
	}
	return fromMasked(p)
}

func toMaskedAll(ms []hsm.MaskedObject) []*pb.Masked {
	out := make([]*pb.Masked, len(ms))
	for i, m := range ms {
		out[i] = toMasked(m)
	}
	return out
}

func fromMaskedAll(ps []*pb.Masked) ([]hsm.MaskedObject, error) {
	if len(ps) > maxObjects {
		return nil, invalid("%d masked objects, at most %d", len(ps), maxObjects)
	}
	return convertAll(ps, fromMasked)
}

// convertAll converts every element; none gives nil.
func convertAll[P, T any](ps []P, one func(P) (T, error)) ([]T, error) {
	var out []T
	for _, p := range ps {
		v, err := one(p)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func toRefs[R ~uint64](refs []R) []uint64 {
	out := make([]uint64, len(refs))
	for i, r := range refs {
		out[i] = uint64(r)
	}
	return out
}

func toRoot(r hsm.Root) *pb.RootReply { return &pb.RootReply{Sum: r.Sum[:], Count: r.Count} }

func fromRoot(p *pb.RootReply) (hsm.Root, error) {
	c := &checker{}
	r := hsm.Root{Sum: fixed32(c, "root", p.GetSum()), Count: p.GetCount()}
	return r, c.err
}

func fromFingerprintKeys(p *pb.FingerprintKeysReply) (hsm.FingerprintKeys, error) {
	c := &checker{}
	k := hsm.FingerprintKeys{Root: fixed32(c, "root key", p.GetRoot()), Sketch: fixed[[16]byte](c, "sketch key", p.GetSketch())}
	return k, c.err
}

func toSettings(s *hsm.Settings) *pb.Settings {
	if s == nil {
		return nil
	}
	return &pb.Settings{MinCopies: int64(s.MinCopies), MinZones: int64(s.MinZones), CheckOnUse: s.CheckOnUse, Custodians: s.Custodians, Threshold: int64(s.Threshold)}
}

func fromSettings(c *checker, p *pb.Settings) *hsm.Settings {
	if p == nil {
		return nil
	}
	return &hsm.Settings{
		MinCopies: c.small("minimum of copies", p.GetMinCopies()), MinZones: c.small("minimum of zones", p.GetMinZones()), CheckOnUse: p.GetCheckOnUse(),
		Custodians: c.texts("custodians", p.GetCustodians(), maxRecipients, maxRecipient), Threshold: c.small("threshold", p.GetThreshold()),
	}
}

func toMember(m *hsm.Member) *pb.Member {
	if m == nil {
		return nil
	}
	return &pb.Member{
		Id: uint64(m.ID), Name: m.Name, Address: m.Address, Zone: m.Zone, Removed: m.Removed, Joining: m.Joining, Leaving: m.Leaving,
		Drained: m.Drained, Replaces: uint64(m.Replaces), Doubt: m.Doubt, Settled: m.Settled, Keep: m.Keep,
	}
}

func fromMember(c *checker, p *pb.Member) *hsm.Member {
	if p == nil {
		return nil
	}
	return &hsm.Member{
		ID: hsm.HSMID(p.GetId()), Name: c.name("member's name", p.GetName()), Address: c.name("address", p.GetAddress()),
		Zone: c.name("zone", p.GetZone()), Removed: p.GetRemoved(), Joining: p.GetJoining(), Leaving: p.GetLeaving(),
		Drained: p.GetDrained(), Replaces: hsm.HSMID(p.GetReplaces()), Doubt: p.GetDoubt(), Settled: p.GetSettled(), Keep: p.GetKeep(),
	}
}

func toMembers(ms []hsm.Member) *pb.MembersReply {
	out := &pb.MembersReply{}
	for _, m := range ms {
		out.Members = append(out.Members, toMember(&m))
	}
	return out
}

func fromMembers(p *pb.MembersReply) ([]hsm.Member, error) {
	c := &checker{}
	c.count("members", len(p.GetMembers()), maxMembers)
	out := []hsm.Member{}
	for _, m := range p.GetMembers() {
		if one := fromMember(c, m); one != nil {
			out = append(out, *one)
		}
	}
	return out, c.err
}

func toInfo(i hsm.Info) *pb.InfoReply {
	return &pb.InfoReply{
		Id: uint64(i.ID), Cluster: uint64(i.Cluster), ClusterName: i.ClusterName, Region: i.Region, Zone: i.Zone,
		Lineage: i.Lineage[:], Version: i.Version, State: string(i.State), Notice: i.Notice, Time: toTime(i.Time), Root: toRoot(i.Root), ClusterRoot: toRoot(i.ClusterRoot),
		Keys: i.Keys, InDoubt: i.InDoubt, Sessions: i.Sessions, Started: toTime(i.Started), LastSync: toTime(i.LastSync),
		Settings: toSettings(&i.Settings), Doubts: toDoubts(i.Doubts), Epochs: i.Epochs, Sealing: i.Sealing, Format: i.Format, Clock: i.Clock,
		Quorum: toQuorum(i.Quorum), GeneratedTimeout: toSeconds(i.Timeouts.Generated), ApprovedTimeout: toSeconds(i.Timeouts.Approved),
		Departure: i.Departure, OutOfTouch: i.OutOfTouch,
	}
}

func toQuorum(v hsm.QuorumValues) *pb.QuorumValues {
	if v == (hsm.QuorumValues{}) {
		return nil
	}
	return &pb.QuorumValues{User: int64(v.User), Quorum: int64(v.Quorum), Cluster: int64(v.Cluster)}
}

func toDoubts(doubts []hsm.Doubt) (out []*pb.Doubt) {
	for _, d := range doubts {
		one := &pb.Doubt{Op: d.Op[:], Since: toTime(d.Since)}
		for _, ref := range d.Refs {
			one.Refs = append(one.Refs, uint64(ref))
		}
		out = append(out, one)
	}
	return out
}

func fromDoubts(c *checker, doubts []*pb.Doubt) (out []hsm.Doubt) {
	c.count("operations in doubt", len(doubts), hsm.MaxDoubts)
	for _, d := range doubts {
		one := hsm.Doubt{Op: fixed[hsm.OpID](c, "operation", d.GetOp()), Since: fromTime(d.GetSince())}
		c.count("references of an operation in doubt", len(d.GetRefs()), hsm.MaxDoubtRefs)
		for _, ref := range d.GetRefs() {
			one.Refs = append(one.Refs, hsm.KeyRef(ref))
		}
		out = append(out, one)
	}
	return out
}

func fromInfo(p *pb.InfoReply) (hsm.Info, error) {
	c := &checker{}
	root, err := fromRoot(p.GetRoot())
	c.note(err)
	clusterRoot, err := fromRoot(p.GetClusterRoot())
	c.note(err)
	i := hsm.Info{
		ID: hsm.HSMID(p.GetId()), Cluster: hsm.ClusterID(p.GetCluster()), ClusterName: c.name("cluster name", p.GetClusterName()),
		Region: c.name("region", p.GetRegion()), Zone: c.name("zone", p.GetZone()), Lineage: fixed[hsm.Lineage](c, "lineage", p.GetLineage()),
		Version: c.name("version", p.GetVersion()), State: hsm.State(c.word("state", p.GetState())), Notice: c.text("notice", p.GetNotice(), maxFailure), Time: fromTime(p.GetTime()), Root: root, ClusterRoot: clusterRoot,
		Keys: p.GetKeys(), InDoubt: p.GetInDoubt(), Sessions: p.GetSessions(),
		Started: fromTime(p.GetStarted()), LastSync: fromTime(p.GetLastSync()), Doubts: fromDoubts(c, p.GetDoubts()), Epochs: p.GetEpochs(), Sealing: p.GetSealing(), Format: p.GetFormat(), Clock: p.GetClock(),
		Quorum: hsm.QuorumValues{User: c.small("quorum value", p.GetQuorum().GetUser()), Quorum: c.small("quorum value", p.GetQuorum().GetQuorum()),
			Cluster: c.small("quorum value", p.GetQuorum().GetCluster())},
		Timeouts:  hsm.QuorumTimeouts{Generated: fromSeconds(c, p.GetGeneratedTimeout()), Approved: fromSeconds(c, p.GetApprovedTimeout())},
		Departure: p.GetDeparture(), OutOfTouch: p.GetOutOfTouch(),
	}
	c.count("masking keys", len(i.Epochs), hsm.MaxEpochs)
	if s := fromSettings(c, p.GetSettings()); s != nil {
		i.Settings = *s
	}
	return i, c.err
}

func toValues(m map[string]string) map[string][]byte {
	if m == nil {
		return nil
	}
	out := make(map[string][]byte, len(m))
	for name, v := range m {
		out[name] = []byte(v)
	}
	return out
}

func toKeyInfo(k hsm.KeyInfo) *pb.KeyInfo {
	return &pb.KeyInfo{
		Ref: uint64(k.Ref), Class: string(k.Class), Type: k.Type, Size: int64(k.Size), Curve: k.Curve, Label: []byte(k.Label), Id: k.ID,
		CheckValue: k.CheckValue, Attributes: toValues(k.Attributes), Owner: k.Owner, Shares: k.Shares, Pair: uint64(k.Pair),
		Token: k.Token, Created: toTime(k.Created), Incarnation: k.Incarnation, Digest: k.Digest[:],
	}
}

func fromKeyInfo(p *pb.KeyInfo) (hsm.KeyInfo, error) {
	c := &checker{}
	k := hsm.KeyInfo{
		Ref: c.ref(p.GetRef()), Class: hsm.Class(c.word("class", p.GetClass())), Type: c.word("key type", p.GetType()),
		Size: c.small("size", p.GetSize()), Curve: c.word("curve", p.GetCurve()), Label: c.text("label", string(p.GetLabel()), maxValue),
		ID: c.text("id", p.GetId(), maxValue), CheckValue: c.word("check value", p.GetCheckValue()),
		Attributes: c.values("attributes", p.GetAttributes()), Owner: c.name("owner", p.GetOwner()),
		Shares: c.texts("shares", p.GetShares(), maxShares, maxName), Pair: c.noneOrRef(p.GetPair()), Token: p.GetToken(),
		Created: fromTime(p.GetCreated()), Incarnation: p.GetIncarnation(), Digest: fixed[hsm.Digest](c, "digest", p.GetDigest()),
	}
	if k.Shares == nil {
		k.Shares = []string{} // as Record.Shares
	}
	return k, c.err
}

func toCreated(created hsm.Created) *pb.CreateReply {
	out := &pb.CreateReply{Objects: toMaskedAll(created.Objects)}
	for _, k := range created.Keys {
		out.Keys = append(out.Keys, toKeyInfo(k))
	}
	return out
}

func fromCreated(p *pb.CreateReply) (created hsm.Created, err error) {
	if len(p.GetKeys()) > maxObjects {
		return created, invalid("%d keys, at most %d", len(p.GetKeys()), maxObjects)
	}
	if created.Keys, err = convertAll(p.GetKeys(), fromKeyInfo); err != nil {
		return hsm.Created{}, err
	}
	created.Objects, err = fromMaskedAll(p.GetObjects())
	return created, err
}

func toUser(u hsm.UserInfo) *pb.UserInfo {
	return &pb.UserInfo{Name: u.Name, Role: string(u.Role), Locked: u.Locked, Ref: uint64(u.Ref), Digest: u.Digest[:], Quorum: u.Quorum, Mfa: u.MFA}
}

func fromUser(p *pb.UserInfo) (hsm.UserInfo, error) {
	c := &checker{}
	u := hsm.UserInfo{
		Name: c.name("user's name", p.GetName()), Role: hsm.Role(c.word("role", p.GetRole())), Locked: p.GetLocked(),
		Ref: c.ref(p.GetRef()), Digest: fixed[hsm.Digest](c, "digest", p.GetDigest()),
		Quorum: p.GetQuorum(), MFA: p.GetMfa(),
	}
	return u, c.err
}

func toInserted(n hsm.Inserted) *pb.InsertReply {
	return &pb.InsertReply{Added: uint64(n.Added), Changed: uint64(n.Changed), Unchanged: uint64(n.Unchanged)}
}

func fromInserted(p *pb.InsertReply) (hsm.Inserted, error) {
	c := &checker{}
	const most = 1 << 48
	if p.GetAdded() > most || p.GetChanged() > most || p.GetUnchanged() > most {
		c.fail("count of inserted objects is out of range")
	}
	n := hsm.Inserted{
		Added: int(p.GetAdded()), Changed: int(p.GetChanged()), Unchanged: int(p.GetUnchanged()),
		Conflicts: c.refs("conflicts", p.GetConflicts(), batchConflicts),
	}
	return n, c.err
}
