"""A machine's timeline as something to look at: a page, two runs side by side, a picture, a trace for Perfetto. Records in, text out."""
