"""What is wrong with a Redis and the streams on it, and what to do: pure checks over facts.

docs/doctor.md is for users.
"""
