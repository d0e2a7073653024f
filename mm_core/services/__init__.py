"""What keeps an installation running: pages, the local servers, backup, checks and repair."""
