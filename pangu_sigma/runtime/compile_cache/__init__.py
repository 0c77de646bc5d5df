"""Compiled graphs that are kept between runs: `key` says what a graph is made of, `store` keeps the files, `folder`
says where, `executor` stands between MindSpore's compiler and both.
"""
