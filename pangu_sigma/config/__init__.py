"""Configuration: the keys (`schema`, `schema_run`), reading and writing them (`load`, `strict_yaml`), what follows from
them (`derived`), and checks across keys (`validate`, `check_parallel`, `check_run`, `ascend`).
"""
