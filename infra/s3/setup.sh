#!/bin/sh
# Makes buckets, the engine's key and the rules; repeating it changes nothing. For MinIO; on AWS the same three JSON files
# go to `put-bucket-lifecycle-configuration` and an IAM policy.
set -eu
mc alias set s3 http://s3:9000 "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing s3/matting s3/matting-inbox
mc version enable s3/matting
mc ilm import s3/matting </setup/lifecycle.json
mc ilm import s3/matting-inbox </setup/lifecycle-inbox.json
mc admin policy create s3 matting /setup/policy.json
mc admin user add s3 "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
mc admin policy attach s3 matting --user "$AWS_ACCESS_KEY_ID" 2>/dev/null || true
