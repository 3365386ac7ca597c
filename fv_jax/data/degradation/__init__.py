"""Degradations: what turns a high-quality clip into its low-quality input."""
