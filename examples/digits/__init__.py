"""The main job on real input: see README.md, or run `python -m examples.digits`."""
