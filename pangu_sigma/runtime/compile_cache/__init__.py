"""Compiled graphs that are kept between runs: `key` says what a graph is made of, `store` keeps the files, `executor`
stands between MindSpore's compiler and both.
"""
