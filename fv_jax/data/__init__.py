"""Data: clip records and shards, video files, transforms, degradations, the loader, the embedded clips."""
