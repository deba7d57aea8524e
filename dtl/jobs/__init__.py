"""What a process can do, each told in order."""
