"""`pangu-sigma plan`: what a configuration costs on a cluster, before anything runs. Nothing here needs MindSpore.

command.py: the command. job.py: a configuration on so many ranks. parameters.py, slots.py: sizes by closed form. exchanges.py: every
collective of a step; traffic.py: its bytes. memory.py, predict.py: what a rank holds, how long a step takes on hardware.py's machines,
of which cluster.py takes so many. plan.py: all of it for one configuration; report.py: as text. fits.py: changes that make it fit.
sweep.py: many plans beside each other.
"""
