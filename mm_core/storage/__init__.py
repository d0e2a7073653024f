"""Blobs in a folder or S3, the catalog's Delta tables with their columns, and retries of failing disks and networks."""
