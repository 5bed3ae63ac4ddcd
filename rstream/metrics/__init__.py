"""What Prometheus scrapes: of a worker (collector.py, merged over its processes by merge.py), and of the fleet."""
