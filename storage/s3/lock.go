package s3

import (
	"context"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

var _ remote.LockBucket = (*bucket)(nil)

// SetRetention implements remote.LockBucket.
func (b *bucket) SetRetention(ctx context.Context, key string, r storage.Retention) error {
	_, err := b.api.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
		Bucket: &b.name, Key: &key,
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(strings.ToUpper(string(r.Mode))), RetainUntilDate: &r.Until},
	})
	return err
}

// GetRetention implements remote.LockBucket.
func (b *bucket) GetRetention(ctx context.Context, key string) (storage.Retention, error) {
	out, err := b.api.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.name, Key: &key})
	if err != nil || out.Retention == nil {
		return storage.Retention{}, err
	}
	return storage.Retention{Mode: storage.LockMode(strings.ToLower(string(out.Retention.Mode))), Until: aws.ToTime(out.Retention.RetainUntilDate)}, nil
}
