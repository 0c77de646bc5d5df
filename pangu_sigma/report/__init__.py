"""Run folders, shown: as a page (`report`), in a terminal (`terminal`), side by side (`summary`), by where the time of
their steps went (`step_trace`), as figures for a paper (`figure_files`).

`folder` and `step_trace` read what runs write, also before they are finished; `collect` makes tables of it, `facts`
what a reader must know besides. `figures` and `curves` decide what is drawn, `specs` holds it as data, `plot` has
matplotlib draw it in the colours of `palette` and the fonts of `fonts`, `embed` puts it into a page. `page` holds the
page's pieces, `numbers` writes numbers. Nothing here needs MindSpore, and nothing but figures matplotlib.
"""
