"""The loop through people: hard photos out as Label Studio tasks, soft mattes back as new label versions."""
