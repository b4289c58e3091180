package synckey

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Signature is what an HSM of one side signed of a result, with the lineage's
// key and purpose report (PROTOCOL.md, 8).
type Signature struct {
	Cluster   hsm.ClusterID `json:"cluster"`
	HSM       hsm.HSMID     `json:"hsm"`
	Public    string        `json:"public_key"` // base64
	Signature string        `json:"signature"`  // base64
}

// reportLabel keeps a signed result from serving any other use of the purpose.
const reportLabel = "hsmbackup synckey report v1\x00"

// maxReport bounds a report that is read: 10,000 lines of Left and as many of
// Blocked and Conflicts fit several times.
const maxReport = 64 << 20

// digest is of everything in the result but its signatures.
func (r *Result) digest() ([32]byte, error) {
	c := *r
	c.Signatures = nil
	b, err := json.Marshal(c)
	return sha256.Sum256(b), err
}

// message is what an HSM of one of the two clusters signs: fresh by the run's
// nonce, and bound to HSM, cluster, peer, root and time besides the whole result.
func (r *Result) message(digest [32]byte, id hsm.HSMID, own, peer Cluster) ([]byte, error) {
	nonce, err := hex.DecodeString(r.Nonce)
	if err != nil || len(nonce) != nonceSize {
		return nil, fmt.Errorf("%w: nonce %q", hsm.ErrInvalid, r.Nonce)
	}
	root := make([]byte, 32) // zeros: the login is not shown one
	if own.Root != "" {
		if root, err = hex.DecodeString(own.Root); err != nil || len(root) != 32 {
			return nil, fmt.Errorf("%w: root %q", hsm.ErrInvalid, own.Root)
		}
	}
	m := append([]byte(reportLabel), nonce...)
	for _, v := range []uint64{uint64(id), uint64(own.ID), uint64(peer.ID)} {
		m = binary.BigEndian.AppendUint64(m, v)
	}
	m = append(m, root...)
	m = binary.BigEndian.AppendUint64(m, uint64(r.Time.UnixMilli()))
	return append(m, digest[:]...), nil
}

// Sign has both clusters sign the result as it is now. It takes an admin or an
// appliance on both sides, hsm.ErrDenied otherwise. The signatures say that whoever
// ran this had those rights at genuine HSMs of both, and that the report is as it
// was; PROTOCOL.md tells what they do not say.
func (p *Plan) Sign(ctx context.Context) error {
	r := p.Result
	r.Signatures = nil
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	r.Nonce, r.Time = hex.EncodeToString(nonce), time.Now().UTC().Truncate(time.Millisecond)
	signers := map[*side]cluster.Source{}
	for s, into := range map[*side]*Cluster{p.src: &r.Src, p.dst: &r.Dst} {
		h, version, err := s.signer(ctx)
		if err != nil {
			return err
		}
		signers[s], into.Version = h, version
	}
	digest, err := r.digest()
	if err != nil {
		return err
	}
	for _, s := range []*side{p.src, p.dst} {
		signature, err := s.sign(ctx, r, digest, signers[s])
		if err != nil {
			r.Signatures = nil
			return s.wrap(fmt.Errorf("sign the report: %w", err))
		}
		r.Signatures = append(r.Signatures, signature)
	}
	return nil
}

// SignIfAllowed is Sign, but where the logins may not have reports signed, the
// result tells so instead.
func (p *Plan) SignIfAllowed(ctx context.Context) error {
	err := p.Sign(ctx)
	if !errors.Is(err, hsm.ErrDenied) {
		return err
	}
	p.Result.Unsigned, p.Result.Nonce = err.Error(), ""
	return nil
}

// signer picks an HSM that answers, and tells its version.
func (s *side) signer(ctx context.Context) (h cluster.Source, version string, err error) {
	hsms, _, err := s.sources(ctx)
	if err != nil {
		return h, "", err
	}
	for _, a := range ask(ctx, s, hsms, func(ctx context.Context, h cluster.Source) (hsm.Info, error) { return h.Info(ctx) }) {
		if err = a.err; err == nil {
			return a.from, a.value.Version, nil
		}
	}
	return h, "", s.wrap(err)
}

func (s *side) sign(ctx context.Context, r *Result, digest [32]byte, h cluster.Source) (Signature, error) {
	own, peer := r.Src, r.Dst
	if own.ID != s.Profile().ID {
		own, peer = peer, own
	}
	message, err := r.message(digest, h.ID, own, peer)
	if err != nil {
		return Signature{}, err
	}
	signed, err := h.Sign(ctx, hsm.PurposeReport, message)
	if err != nil {
		return Signature{}, err
	}
	if err := signed.Verify(r.Lineage, hsm.PurposeReport, message); err != nil {
		return Signature{}, err
	}
	return Signature{Cluster: own.ID, HSM: h.ID,
		Public: base64.StdEncoding.EncodeToString(signed.Public), Signature: base64.StdEncoding.EncodeToString(signed.Signature)}, nil
}

// ReadReport reads the JSON of a result, as --report writes it. hsm.ErrInvalid if it
// is none, or holds anything that the signatures would not cover.
func ReadReport(in io.Reader) (*Result, error) {
	b, err := io.ReadAll(io.LimitReader(in, maxReport+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxReport {
		return nil, fmt.Errorf("%w: more than %d bytes are no synckey report", hsm.ErrInvalid, maxReport)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r Result
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: not a synckey report: %w", hsm.ErrInvalid, err)
	}
	// What is said twice, or otherwise than we would, could be read otherwise.
	var compact bytes.Buffer
	again, err := json.Marshal(&r)
	if compactErr := json.Compact(&compact, b); err != nil || compactErr != nil || !bytes.Equal(compact.Bytes(), again) {
		return nil, fmt.Errorf("%w: not a synckey report as it is written: fields are repeated, missing or in another form", hsm.ErrInvalid)
	}
	return &r, nil
}

// Verify checks, without any key, that HSMs of the lineage trust signed the result
// as it is, one for each of the two clusters, and that it does not contradict
// itself. hsm.ErrSignature if it is not signed by both or was changed since;
// hsm.ErrLineage if it is of another lineage.
func (r *Result) Verify(trust hsm.Lineage) error {
	if r.Lineage != trust {
		return fmt.Errorf("%w: the report is of %s, want %s", hsm.ErrLineage, r.Lineage, trust)
	}
	if len(r.Signatures) != 2 {
		return fmt.Errorf("%w: the report has %d signatures, want one of each cluster", hsm.ErrSignature, len(r.Signatures))
	}
	if r.Src.ID == r.Dst.ID {
		return fmt.Errorf("%w: source and destination are one cluster", hsm.ErrSignature)
	}
	digest, err := r.digest()
	if err != nil {
		return err
	}
	for i, own := range []Cluster{r.Src, r.Dst} {
		if err := r.verify(r.Signatures[i], digest, own, []Cluster{r.Dst, r.Src}[i]); err != nil {
			return fmt.Errorf("signature of %s: %w", own.ID, err)
		}
	}
	if r.RootsEqual && (r.Src.Root != r.Dst.Root || r.Remaining > 0) {
		return fmt.Errorf("%w: the report says that roots are equal, and shows that they are not", hsm.ErrSignature)
	}
	return nil
}

func (r *Result) verify(s Signature, digest [32]byte, own, peer Cluster) error {
	if s.Cluster != own.ID {
		return fmt.Errorf("%w: it is of %s", hsm.ErrSignature, s.Cluster)
	}
	message, err := r.message(digest, s.HSM, own, peer)
	if err != nil {
		return err
	}
	public, err1 := base64.StdEncoding.DecodeString(s.Public)
	signature, err2 := base64.StdEncoding.DecodeString(s.Signature)
	if err1 != nil || err2 != nil || s.Public != base64.StdEncoding.EncodeToString(public) || s.Signature != base64.StdEncoding.EncodeToString(signature) {
		return fmt.Errorf("%w: not base64", hsm.ErrSignature)
	}
	return hsm.LineageSignature{Public: public, Signature: signature}.Verify(r.Lineage, hsm.PurposeReport, message)
}
