"""Services of an installation: pages, the local servers, backup, checks and repair."""
