"""Options of the verbs: one file a verb, one typed config a file.

Nothing here imports torch or a simulator, so that `rlrc VERB --help` answers at once. `parts.py` holds what several
verbs share.
"""
