"""What the mattes are for: functions on single photos, which of them suits a photo, and moments of a whole gallery."""
