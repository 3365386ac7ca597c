"""Curation: scores of clips, filters over them, duplicates, captions, and the page that shows what is kept and why."""
