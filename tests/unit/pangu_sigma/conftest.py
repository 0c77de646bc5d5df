"""What several products' tests share."""

from helpers.runs import made_up_cosines, made_up_records, make_plan, whole_plan, write_plan, write_run

__all__ = ["made_up_cosines", "made_up_records", "make_plan", "whole_plan", "write_plan", "write_run"]
