"""One short file per trained system, each holding only what is different about it. `base` is what they all offer."""
