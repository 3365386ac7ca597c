"""Reports: one description by blocks, written as Markdown and as one self-contained HTML file."""
