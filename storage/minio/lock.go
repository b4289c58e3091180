package minio

import (
	"context"
	"fmt"
	"strings"
	"time"

	client "github.com/minio/minio-go/v7"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

var _ remote.LockBucket = (*bucket)(nil)

// SetRetention implements remote.LockBucket.
func (b *bucket) SetRetention(ctx context.Context, key string, r storage.Retention) error {
	mode := client.RetentionMode(strings.ToUpper(string(r.Mode)))
	return b.core.PutObjectRetention(ctx, b.name, key, client.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &r.Until})
}

// GetRetention implements remote.LockBucket.
func (b *bucket) GetRetention(ctx context.Context, key string) (storage.Retention, error) {
	// Not by the library's GetObjectRetention, which does not understand versitygw.
	info, err := b.core.StatObject(ctx, b.name, key, client.StatObjectOptions{})
	if err != nil {
		return storage.Retention{}, err
	}
	mode, text := info.Metadata.Get("X-Amz-Object-Lock-Mode"), info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date")
	if mode == "" || text == "" {
		return storage.Retention{}, nil
	}
	until, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return storage.Retention{}, fmt.Errorf("the lock of %s: %w", key, err)
	}
	return storage.Retention{Mode: storage.LockMode(strings.ToLower(mode)), Until: until}, nil
}
