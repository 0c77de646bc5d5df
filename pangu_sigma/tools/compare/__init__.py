"""`pangu-sigma compare`: variants of one configuration, trained side by side and reported.

command.py: the command. plan.py: a YAML file of variants -> runs. runner.py: makes them, and goes on where it was cut off.
collect.py: run folders -> tables. report.py: tables and figures -> one HTML file (figures.py decides what is drawn, svg.py
draws, page.py holds the page's pieces). Nothing here needs MindSpore.
"""
