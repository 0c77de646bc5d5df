"""`pangu-sigma eval`: perplexity, multiple choice and generation tasks of a checkpoint, in one process.

model.py     a checkpoint, opened for evaluation
windows.py   what is to be scored, as documents in rows of fixed length
scoring.py   the compiled graph that scores them
perplexity.py, choice.py, generation.py   what can be measured; each is a `Measurement` (measurement.py)
tasks.py, readers.py, templates.py        task files, and the files of examples that they name
agreement.py, intervals.py                scores of answers, and confidence intervals
results.py, command.py                    files and table; the command
"""
