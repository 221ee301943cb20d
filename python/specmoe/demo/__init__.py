"""What `specmoe demo` runs: the subject, the two comparisons, and how they are shown."""
