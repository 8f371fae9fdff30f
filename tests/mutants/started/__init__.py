"""Code that runs in each Python process that a test starts, while a mutant is tried."""
