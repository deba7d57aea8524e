"""What a process can do, each job as numbered steps."""
