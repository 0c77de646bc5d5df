"""This process: how it was launched, its part in the job, MindSpore's settings, the files it writes, what it tells its
user.
"""
