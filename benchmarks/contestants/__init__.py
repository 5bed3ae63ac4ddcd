"""One small file a contestant: its app, its handlers, and how it publishes. How it is run says `benchmarks.entrants`."""
