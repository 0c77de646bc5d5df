"""`pangu-sigma eval`: perplexity, multiple choice and generation tasks of a checkpoint, in one process.

`evaluate` is the order of it all. `model`: a checkpoint, opened for evaluation; `windows`: what is to be scored, as
documents in rows of fixed length; `scoring`: the compiled graph that scores them. `perplexity`, `choice`, `generation`:
what can be measured, each a `Measurement`. `tasks`, `readers`, `templates`: task files, and the files of examples that
they name. `agreement`,
    `intervals`: scores of
answers, and confidence intervals. `results`: files and table. `lm_eval`: the adapter for the lm-eval harness.
"""
