"""Run folders, shown: as a page (`report`), in a terminal (`watch`), side by side (`summary`), by step trace
(`profile`).

`files` and `folder` read what runs write, also while they go on; `collect` makes tables of it, `figures` decides what
is drawn, `svg` draws, `page` holds the page's pieces. Nothing here needs MindSpore.
"""
