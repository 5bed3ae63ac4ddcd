"""One small file a contestant: its app, its handlers, how it publishes. How it is run says `benchmarks.entrants`."""
