"""Pages in a real browser: the one that this machine has, and pictures of pages for the documentation."""
