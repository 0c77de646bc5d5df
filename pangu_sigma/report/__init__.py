"""Run folders, shown: as a page (`report`), in a terminal (`terminal`), side by side (`summary`), by where the time of
their steps went (`step_trace`).

`folder` and `step_trace` read what runs write, also before they are finished; `collect` makes tables of it, `figures`
decides what is drawn, `svg` draws, `page` holds the page's pieces, `numbers` writes numbers. Nothing here needs
MindSpore.
"""
