"""Blobs in a folder or on S3, the catalog's Delta tables, and retries after failures of disks and networks."""
