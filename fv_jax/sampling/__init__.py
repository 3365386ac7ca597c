"""From a prompt to a preview to a video, and clips of any length enhanced."""
