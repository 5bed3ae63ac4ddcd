"""The dashboard: what happens now, what happened last Tuesday, and what to do about it. docs/dashboard.md is for users.

Pages are made on the server; two small scripts of our own keep them fresh and let a window be picked on a plot. Data
flows one way: live.py looks at Redis for all viewers at once, view.py says what it means (pure), pages.py and
actions.py answer requests, and guard.py decides who may ask. Needs the extra `dashboard`; nothing else imports it.
"""
