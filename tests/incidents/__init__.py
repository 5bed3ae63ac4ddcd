"""Incidents, staged: what docs/runbook shows is what commands print while these go on.

A page in docs/runbook has blocks that begin with ```console and a line `$ command`. `python -m tests.incidents` stages
the incident of each page, runs its commands in their order and writes what they print into the page; `<!-- then -->`
lets the incident go on. tests/test_runbook.py does the same, and compares what matters.
"""
