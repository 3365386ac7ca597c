"""Samples previews and videos from prompts, and enhances clips of any length."""
