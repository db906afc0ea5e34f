"""A result set as the evaluation section of a paper: one HTML page, or Markdown with figure files.

`sections` says what stands in it, `figures` picks the numbers, `drawing` is the only module that
knows matplotlib, `html` and `markdown` write what they are given and add nothing.
"""
