"""`pangu-sigma report` and `pangu-sigma watch`: run folders as a page and in a terminal, also while a run goes on.

folder.py reads a run folder again and again; report.py makes the page, with the figures of compare; terminal.py the text.
Nothing here needs MindSpore, and nothing is written into a run folder but the page.
"""
