"""A job server for previews and videos: queue, history, HTTP and a web page (guide: README.md)."""
