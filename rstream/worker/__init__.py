"""The worker: one loop a file, no loop knows another; they meet in `run.ConsumerRun`."""
