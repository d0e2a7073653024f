"""What every room uses: parameters, settings, the workspace's paths, errors, shared record types, locks, processes."""
