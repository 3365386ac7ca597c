"""Generated clips: captioned sprites."""
