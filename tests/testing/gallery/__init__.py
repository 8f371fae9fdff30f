"""Training steps with one mistake each, as found in public code, and training steps without mistakes.

`entries.py` defines an entry. Each other module has the mistakes that the check of one law must find,
and `correct.py` has the steps that must pass every check. `test_gallery.py` runs them.
"""
