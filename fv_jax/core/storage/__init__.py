"""The two kinds of storage behind `core/files`: local file systems, and object stores. No other module knows which."""
