"""Training steps with one mistake each, as seen in public code, and steps without any.

`entries.py` says what an entry is; each other module holds the mistakes that one law finds, and
`correct.py` the steps that every check must pass. `test_gallery.py` runs them.
"""
