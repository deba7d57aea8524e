"""Jobs in a cluster's queue: submit them, follow them, check their nodes."""
