"""The archive: segments of the log in object storage, read as if they were still in Redis. docs/archive.md is for
users.

segment.py and manifest.py are the format, vault.py the objects of one stream; archiver.py and run.py write them,
reader.py and archive.py read them, verify.py, sweep.py, overview.py and references.py look after them.
"""
