"""`pangu-sigma audit`: what the compiled graphs of a job really exchange, versus what the planner predicts."""
