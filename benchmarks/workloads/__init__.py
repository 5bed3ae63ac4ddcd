"""One file a workload: it takes a plan, and gives tables."""
