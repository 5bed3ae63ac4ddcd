"""`rstream top`: a live screen of all groups. What it shows and how keys change that is pure (rows, model, draw); Redis
is asked in fetch, the terminal is spoken to in terminal.
"""
