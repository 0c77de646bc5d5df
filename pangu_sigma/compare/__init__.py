"""`pangu-sigma compare`: variants of one configuration, trained one after another.

`comparison`: a YAML file of variants -> runs; `values` checks what stands in it. `runner` makes the runs, and resumes
where it was cut off. `pangu_sigma.report` shows them.
"""
